//! Launches the hand-written kernels of `kernels/` on cubecl's devices, beside burn's own operations.
//!
//! One source an operation and language; what a call's shapes decide is passed at run time, what changes the code
//! (dtype, vector width, head size) is put before the source as constants. Buffers are dense and row-major.
//! Each operation has a pure function from shapes and a [`Target`] to a [`Plan`], and one that hands the plan
//! and the tensors' buffers to the device.
//!
//! The CUDA kernels have never run on a GPU: they are left alone, and burn's own operations run, unless the
//! environment has `AQUATINT_CUDA_KERNELS=1` when the first operation on CUDA is computed.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv2d;
pub(crate) mod denoise;
pub(crate) mod group_norm;
pub(crate) mod layer_norm;
pub(crate) mod matmul;
pub(crate) mod modulate;
pub(crate) mod plan;
#[cfg(test)]
mod proof;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod upsample;

use std::any::Any;
use std::sync::LazyLock;

use burn::backend::{BackendTypes, DispatchDevice};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, CubeDevice};
use cubecl::ir::attributes::BufferIOAttr;
use cubecl::ir::metadata::Info;
use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use cubecl::{CubeKernel, PrecompiledSource};

use plan::{Language, Plan, Source, Target};

/// Whether CUDA kernels are launched.
static CUDA_KERNELS: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("AQUATINT_CUDA_KERNELS").is_some_and(|value| value == "1"));

impl Target {
    /// `None` where `x` lives on a device, or in a dtype, that no kernel is written for.
    pub(crate) fn of<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        // Where an application turns burn's fusion on, tensors are promises that its own compiler has to keep.
        let plain =
            <dyn Any>::is::<Option<CubeTensor>>(&None::<<Cube as BackendTypes>::FloatTensorPrimitive>);
        let language = match x.device().as_dispatch() {
            DispatchDevice::Cube(CubeDevice::Wgpu(_)) => Language::Wgsl,
            DispatchDevice::Cube(CubeDevice::Cuda(_)) if *CUDA_KERNELS => Language::Cuda,
            _ => return None,
        };
        let elem = x.dtype();
        let written = match elem {
            DType::F32 | DType::F16 => true,
            DType::BF16 => language == Language::Cuda,
            _ => false,
        };
        (plain && written).then_some(Self { language, elem })
    }
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
    /// before outputs; nothing is launched for an empty grid.
    pub(crate) fn launch(&self, inputs: &[&Buffer], outputs: &[&Buffer]) -> Option<()> {
        let [x, y, z] = self.grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Some(());
        }
        let client = outputs.first()?.0.client.clone();
        let mut arguments = KernelArguments::new();
        for (buffers, io) in [(inputs, BufferIOAttr::ReadOnly), (outputs, BufferIOAttr::WriteOnly)] {
            for buffer in buffers {
                arguments = arguments.with_buffer_io(buffer.0.handle.clone().binding(), io);
            }
        }
        let words = self.words();
        arguments = arguments.with_info(match self.target.language {
            Language::Wgsl => MetadataBindingInfo::custom(words),
            // By value after the buffers. What lies behind the offset would come as one buffer more, before it.
            Language::Cuda => {
                let all = words.len();
                MetadataBindingInfo::new(words, all)
            }
        });
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
        let parts = self.source.parts.iter().map(|&(_, text)| text);
        Some(PrecompiledSource {
            source: std::iter::once(self.prelude.as_str()).chain(parts).collect(),
            entrypoint_name: self.entry.to_owned(),
            lang: match self.language {
                Language::Wgsl => "wgsl",
                Language::Cuda => "cuda",
            },
        })
    }
}
