//! Launches the hand-written kernels of `kernels/` on cubecl's devices, beside burn's own operations.
//!
//! One source an operation and language; what a call's shapes decide is passed at run time, what changes the code
//! (dtype, vector width, head size) is put before the source as constants. Buffers are dense and row-major.
//! Each operation has a pure function from shapes and a [`Target`] to a [`Plan`], and one that hands the plan
//! and the tensors' buffers to the device.
//!
//! The CUDA kernels have never run on a GPU: they are left alone, and burn's own operations run, unless the
//! environment has `AQUATINT_CUDA_KERNELS` when the first operation on CUDA is computed: `1` for all of them, `client`
//! for those alone that are launched through cubecl's client. The others need more shared memory than such a launch
//! has, and go to a stream of our own (`own_stream.rs`), on compute capability 9.0.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv2d;
pub(crate) mod denoise;
pub(crate) mod embedding;
pub(crate) mod group_norm;
pub(crate) mod hopper;
pub(crate) mod layer_norm;
pub(crate) mod matmul;
pub(crate) mod modulate;
#[cfg(all(test, feature = "cuda"))]
mod on_device;
#[cfg(feature = "cuda")]
mod own_stream;
pub(crate) mod plan;
#[cfg(test)]
mod proof;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod upsample;

use std::any::Any;
use std::ffi::OsStr;
use std::sync::LazyLock;

use burn::backend::{BackendTypes, DispatchDevice};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, CubeDevice};
use cubecl::features::Tma;
use cubecl::ir::attributes::BufferIOAttr;
use cubecl::ir::metadata::Info;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, UIntKind};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, KernelResource, MetadataBindingInfo, TensorMapBinding, TensorMapMeta};
use cubecl::zspace::metadata::Metadata;
use cubecl::{CubeKernel, PrecompiledSource};

use hopper::{Boxes, Hopper, TensorMap};
use plan::{Language, Plan, Source, Target};

/// Which CUDA kernels are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CudaKernels {
    None,
    /// Those that cubecl's client launches.
    Client,
    All,
}

impl CudaKernels {
    /// What a value of `AQUATINT_CUDA_KERNELS` asks for.
    fn asked(value: Option<&OsStr>) -> Self {
        match value.and_then(OsStr::to_str) {
            Some("1") => Self::All,
            Some("client") => Self::Client,
            _ => Self::None,
        }
    }
}

static CUDA_KERNELS: LazyLock<CudaKernels> =
    LazyLock::new(|| CudaKernels::asked(std::env::var_os("AQUATINT_CUDA_KERNELS").as_deref()));

impl Target {
    /// `None` where `x` lives on a device, or in a dtype, that no kernel is written for.
    pub(crate) fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        // Where an application turns burn's fusion on, tensors are promises that its own compiler has to keep.
        let plain =
            <dyn Any>::is::<Option<CubeTensor>>(&None::<<Cube as BackendTypes>::FloatTensorPrimitive>);
        let (language, hopper) = match x.device().as_dispatch() {
            DispatchDevice::Cube(CubeDevice::Wgpu(_)) => (Language::Wgsl, None),
            DispatchDevice::Cube(device @ CubeDevice::Cuda(_)) if *CUDA_KERNELS != CudaKernels::None => {
                (Language::Cuda, hopper(device.client().properties()))
            }
            _ => return None,
        };
        let target = Self { language, elem: x.dtype(), hopper }.storing(x.dtype());
        target.filter(|_| plain)
    }

    /// With results of another dtype.
    pub(crate) fn storing(self, elem: DType) -> Option<Self> {
        let written = match elem {
            DType::F32 | DType::F16 => true,
            DType::BF16 => self.language == Language::Cuda,
            _ => false,
        };
        written.then_some(Self { elem, ..self })
    }
}

/// What plans ask of a device of compute capability 9.0.
fn hopper(properties: &DeviceProperties) -> Option<Hopper> {
    // How cubecl names the architecture that it compiles for; 10.0 is ptx_sm100.
    let is_one = properties.identity.fingerprint == "ptx_sm90" && properties.features.tma.contains(Tma::Base);
    let multiprocessors = properties.hardware.num_streaming_multiprocessors.filter(|_| is_one)?;
    Some(Hopper { multiprocessors, own_stream: *CUDA_KERNELS == CudaKernels::All })
}

/// Whether the runtime behind `client` takes the kernels of a language.
fn takes(client: &Client, language: Language) -> bool {
    match language {
        // With burn's `vulkan` or `metal`, wgpu compiles to others.
        Language::Wgsl => client.name() == "wgpu<wgsl>",
        // The kernels are written for sm_80 and later, which brought asynchronous copies.
        Language::Cuda => client.name() == "cuda" && client.properties().features.copy_async,
    }
}

/// A tensor's dense elements on the device.
#[derive(Clone)]
pub(crate) struct Buffer(CubeTensor);

impl Buffer {
    /// `None` where the device does not take `target`'s language.
    pub(crate) fn of<const D: usize>(x: Tensor<D>, target: Target) -> Option<Self> {
        let tensor: Box<dyn Any> = Box::new(x.try_into_primitive::<Cube>().ok()?);
        let tensor = tensor.downcast::<CubeTensor>().ok()?;
        takes(&tensor.client, target.language).then(|| Self(into_contiguous(*tensor)))
    }

    /// Whether it lies with Mesa's software adapter, which has subgroups where burn opened it, and there is so much
    /// workgroup memory.
    fn on_llvmpipe_with(&self, bytes: usize) -> bool {
        let properties = self.0.client.properties();
        properties.identity.name.starts_with("llvmpipe")
            && properties.hardware.max_shared_memory_size >= bytes
    }

    /// Not written yet, on the same device.
    pub(crate) fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Self {
        let handle = self.0.client.empty(shape.iter().product::<usize>() * dtype.size());
        let (client, device) = (self.0.client.clone(), self.0.device.clone());
        Self(CubeTensor::new_contiguous(client, device, Shape::new(shape), handle, dtype))
    }

    pub(crate) fn tensor<const D: usize>(self) -> Option<Tensor<D>> {
        let tensor: Box<dyn Any> = Box::new(self.0);
        tensor.downcast().ok().map(|primitive| Tensor::from_primitive::<Cube>(*primitive))
    }
}

impl Plan {
    /// Hands the launch to the device of `outputs`. Buffers stand in the order of the kernel's parameters, inputs
    /// before outputs; nothing is launched for an empty grid. `None` where a kernel for Hopper would get a buffer that
    /// does not start at a multiple of 16 bytes, or our own stream does not take the launch.
    pub(crate) fn launch(&self, inputs: &[&Buffer], outputs: &[&Buffer]) -> Option<()> {
        let [x, y, z] = self.grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Some(());
        }
        let uneven = |buffer: &&Buffer| !buffer.0.handle.offset_start.unwrap_or(0).is_multiple_of(16);
        if !self.maps.is_empty() && inputs.iter().chain(outputs).any(uneven) {
            return None;
        }
        if self.grid.shared_bytes > 0 {
            #[cfg(feature = "cuda")]
            return own_stream::launch(self, inputs, outputs);
            #[cfg(not(feature = "cuda"))]
            return None;
        }
        let client = outputs.first()?.0.client.clone();
        let arguments = self.arguments(inputs, outputs);
        let kernel = Kernel {
            language: self.target.language,
            prelude: self.prelude(),
            source: self.source,
            entry: self.entry,
            threads: self.grid.threads,
        };
        client.launch(Box::new(kernel), CubeCount::Static(x, y, z), arguments);
        Some(())
    }

    /// [`Plan::launch`], or where that is `None` the launch of another plan.
    pub(crate) fn launch_or(
        &self,
        other: impl FnOnce() -> Option<Self>,
        inputs: &[&Buffer],
        outputs: &[&Buffer],
    ) -> Option<()> {
        self.launch(inputs, outputs).or_else(|| other()?.launch(inputs, outputs))
    }

    /// For cubecl's client.
    fn arguments(&self, inputs: &[&Buffer], outputs: &[&Buffer]) -> KernelArguments {
        let mut arguments = KernelArguments::new();
        let mut maps = self.maps.iter();
        for (buffers, io) in [(inputs, BufferIOAttr::ReadOnly), (outputs, BufferIOAttr::WriteOnly)] {
            for buffer in buffers {
                let binding = buffer.0.handle.clone().binding();
                arguments.resources.push(match maps.next() {
                    Some(map) => {
                        let map = map.meta(self.target.elem);
                        KernelResource::TensorMap(TensorMapBinding { binding, map })
                    }
                    None => KernelResource::Buffer(binding),
                });
                arguments.declared_io.push(io);
            }
        }
        let words = self.words();
        arguments.with_info(match self.target.language {
            Language::Wgsl => MetadataBindingInfo::custom(words),
            // By value after the buffers. What lies behind the offset would come as one buffer more, before it.
            Language::Cuda => {
                let all = words.len();
                MetadataBindingInfo::new(words, all)
            }
        })
    }
}

impl TensorMap {
    /// As cubecl takes it: from the outermost dimension in, pitches in elements.
    fn meta(&self, elem: DType) -> TensorMapMeta {
        let sizes: Vec<usize> = self.sizes.iter().rev().map(|&size| size as usize).collect();
        let pitches = self.pitches.iter().rev().map(|&pitch| pitch as usize / elem.size());
        let pitches: Vec<usize> = pitches.chain([1]).collect();
        let (format, steps) = match &self.boxes {
            Boxes::Tiled(sizes) => {
                let tile_size = sizes.iter().rev().map(|&size| size as usize).collect();
                (TensorMapFormat::Tiled(TiledArgs { tile_size }), vec![1; sizes.len()])
            }
            Boxes::Pixels(pixels) => {
                let [step_x, step_y] = pixels.steps.map(|step| step as usize);
                let outer_first = |[x, y]: [i32; 2]| vec![y, x];
                let args = Im2colArgs {
                    pixel_box_lower_corner: outer_first(pixels.lower),
                    pixel_box_upper_corner: outer_first(pixels.upper),
                    channels_per_pixel: pixels.channels,
                    pixels_per_column: pixels.pixels,
                };
                (TensorMapFormat::Im2col(args), vec![1, step_y, step_x, 1])
            }
        };
        TensorMapMeta {
            format,
            metadata: Metadata::new(sizes, pitches),
            elem_stride: steps.into(),
            interleave: TensorMapInterleave::None,
            swizzle: match self.swizzle {
                32 => TensorMapSwizzle::B32,
                64 => TensorMapSwizzle::B64,
                _ => TensorMapSwizzle::B128,
            },
            prefetch: TensorMapPrefetch::B128,
            oob_fill: OobFill::Zero,
            elem_ty: ElemType::Float(if elem == DType::BF16 { FloatKind::BF16 } else { FloatKind::F16 }),
        }
    }
}

/// Some pictures of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    first: usize,
    pub(crate) pictures: usize,
    batch: usize,
}

impl Part {
    /// What these pictures have in `x`, whose first dimension is the batch's.
    pub(crate) fn of<const D: usize>(self, x: &Tensor<D>) -> Tensor<D> {
        if self.pictures == self.batch { x.clone() } else { x.clone().narrow(0, self.first, self.pictures) }
    }
}

/// What [`plan::parts`] cuts a batch into, launched one after the other. Everything is planned before the first launch.
pub(crate) fn in_parts<P, T>(
    batch: usize,
    plan: impl Fn(usize) -> Option<P>,
    launch: impl Fn(&P, Part) -> Option<T>,
) -> Option<Vec<T>> {
    let parts = plan::parts(batch, plan)?.into_iter();
    parts.map(|(first, pictures, plan)| launch(&plan, Part { first, pictures, batch })).collect()
}

/// The outputs of [`in_parts`] as one.
pub(crate) fn joined<const D: usize>(mut parts: Vec<Tensor<D>>) -> Option<Tensor<D>> {
    if parts.len() > 1 { Some(Tensor::cat(parts, 0)) } else { parts.pop() }
}

/// The most bytes that a tensor may have on a device; `None` where nothing says so.
pub(crate) fn largest_tensor(device: &Device) -> Option<u64> {
    let any = Tensor::<1>::empty([1], (device, DType::F32)).try_into_primitive::<Cube>().ok()?;
    let any: Box<dyn Any> = Box::new(any);
    Some(any.downcast::<CubeTensor>().ok()?.client.properties().memory.max_page_size)
}

/// A source with what is put before it.
#[derive(Debug)]
struct Kernel {
    language: Language,
    prelude: String,
    source: Source,
    entry: &'static str,
    threads: u32,
}

impl KernelMetadata for Kernel {
    fn name(&self) -> &'static str {
        self.entry
    }

    fn id(&self) -> KernelId {
        // Compiled kernels are kept by this, on disk as well: it stands for the whole text.
        KernelId::new::<Self>()
            .cube_dim(CubeDim::new_1d(self.threads).0)
            .mode(ExecutionMode::Unchecked)
            .info((self.entry, self.prelude.clone(), self.source.fingerprint))
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Kernel {
    fn define(&self) -> KernelDefinition {
        let threads = CubeDim::new_1d(self.threads).0;
        let settings = KernelSettings::new(threads, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: self.source.after(&self.prelude),
            entrypoint_name: self.entry.to_owned(),
            lang: match self.language {
                Language::Wgsl => "wgsl",
                Language::Cuda => "cuda",
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::hopper::Pixels;
    use super::*;

    #[test]
    fn cuda_kernels_run_where_the_environment_asks_for_them_by_its_own_words() {
        let asked = |value: &str| CudaKernels::asked(Some(value.as_ref()));
        assert_eq!(asked("1"), CudaKernels::All);
        assert_eq!(asked("client"), CudaKernels::Client);
        assert_eq!([asked("0"), asked(""), asked("true")], [CudaKernels::None; 3]);
        assert_eq!(CudaKernels::asked(None), CudaKernels::None);
    }

    /// cubecl takes dimensions, boxes, corners and steps from the outermost in, and strides in elements.
    #[test]
    fn a_tensor_map_reaches_cubecl_from_its_outermost_dimension_in() {
        let map = TensorMap::tiled(&[320, 9, 640], &[64, 1, 128]).unwrap().meta(DType::BF16);
        assert_eq!(map.metadata.shape().iter().copied().collect::<Vec<_>>(), [640, 9, 320]);
        assert_eq!(map.metadata.strides().iter().copied().collect::<Vec<_>>(), [2880, 320, 1]);
        let TensorMapFormat::Tiled(TiledArgs { tile_size }) = map.format else { panic!("tiles") };
        assert_eq!(tile_size.iter().copied().collect::<Vec<_>>(), [128, 1, 64]);
        assert_eq!(map.elem_ty, ElemType::Float(FloatKind::BF16));
        let pixels = Pixels { channels: 32, pixels: 128, lower: [-1, -2], upper: [3, 4], steps: [5, 6] };
        let map = TensorMap::pixels([64, 10, 12, 2], pixels).unwrap().meta(DType::F16);
        assert_eq!(map.metadata.strides().iter().copied().collect::<Vec<_>>(), [7680, 640, 64, 1]);
        let TensorMapFormat::Im2col(args) = map.format else { panic!("pixels") };
        assert_eq!((args.pixel_box_lower_corner, args.pixel_box_upper_corner), (vec![-2, -1], vec![4, 3]));
        assert_eq!(map.elem_stride.iter().copied().collect::<Vec<_>>(), [1, 6, 5, 1]);
        assert_eq!(map.swizzle, TensorMapSwizzle::B64);
    }
}
