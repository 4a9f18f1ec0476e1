//! Launches the hand-written kernels of `kernels/` on cubecl's devices, beside burn's own operations.
//!
//! One source an operation and language; what a call's shapes decide is passed at run time, what changes the code
//! (dtype, vector width, head size) is put before the source as constants. Buffers are dense and row-major.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod upsample;

use std::any::Any;
use std::fmt::Write as _;

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

/// Threads of a workgroup, for kernels that name no other number of their own.
pub(crate) const THREADS: u32 = 128;

/// cubecl's name of the runtime that takes WGSL: with burn's `vulkan` or `metal`, wgpu compiles to others.
const RUNTIME: &str = "wgpu<wgsl>";

/// Threads that share a row in `layer_norm.wgsl`, an output in `matvec.wgsl`.
const LANES: usize = 32;

/// What wgpu allows in each direction of a grid.
const MOST_CUBES: usize = 65_535;

/// Whether `x` lives on a device, in a dtype, that the kernels are written for.
pub(crate) fn holds<const D: usize>(x: &Tensor<D>) -> bool {
    // Where an application turns burn's fusion on, tensors are promises that its own compiler has to keep.
    let plain = <dyn Any>::is::<Option<CubeTensor>>(&None::<<Cube as BackendTypes>::FloatTensorPrimitive>);
    let wgpu = match x.device().as_dispatch() {
        DispatchDevice::Cube(device) => matches!(device, CubeDevice::Wgpu(_)),
        #[allow(unreachable_patterns, reason = "with one backend there is no other")]
        _ => false,
    };
    plain && wgpu && matches!(x.dtype(), DType::F32 | DType::F16)
}

/// A tensor's dense elements on the device.
#[derive(Clone)]
pub(crate) struct Buffer(CubeTensor);

impl Buffer {
    /// `None` where [`holds`] is false, or where the runtime takes another language.
    pub(crate) fn of<const D: usize>(x: Tensor<D>) -> Option<Self> {
        let tensor: Box<dyn Any> = Box::new(x.try_into_primitive::<Cube>().ok()?);
        let tensor = tensor.downcast::<CubeTensor>().ok().filter(|tensor| tensor.client.name() == RUNTIME)?;
        Some(Self(into_contiguous(*tensor)))
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

    pub(crate) fn dtype(&self) -> DType {
        self.0.dtype
    }
}

/// The widest vector that divides every one of `sizes`.
pub(crate) fn vector_width(sizes: &[usize]) -> usize {
    [4, 2].into_iter().find(|width| sizes.iter().all(|size| size % width == 0)).unwrap_or(1)
}

/// Vectors that a thread of an element-wise kernel writes.
const ITEMS: usize = 4;

/// A grid of enough workgroups for `count` vectors of an element-wise kernel.
pub(crate) fn elementwise(count: usize) -> Option<[usize; 3]> {
    spread(count.div_ceil(THREADS as usize * ITEMS))
}

/// A grid of at least `count` workgroups, whose kernel passes over those beyond.
pub(crate) fn spread(count: usize) -> Option<[usize; 3]> {
    let rows = count.div_ceil(MOST_CUBES).max(1);
    (rows <= MOST_CUBES).then(|| [count.div_ceil(rows), rows, 1])
}

/// One launch.
pub(crate) struct Launch<'a> {
    /// The files that make up the text, in their order.
    pub(crate) source: &'static [&'static str],
    /// Also the launch's name in profiles.
    pub(crate) entry: &'static str,
    /// The dtype of what the kernel calls `elem`.
    pub(crate) elem: DType,
    /// Put before the source as `const NAME: u32`.
    pub(crate) constants: &'a [(&'static str, u32)],
    pub(crate) inputs: &'a [&'a Buffer],
    pub(crate) outputs: &'a [&'a Buffer],
    /// The fields of the kernel's `Params`; floats by their bits.
    pub(crate) params: &'a [u32],
    pub(crate) cubes: [usize; 3],
}

impl Launch<'_> {
    /// `None` where sizes pass what a grid or a parameter can say; nothing is launched then.
    pub(crate) fn run(self) -> Option<()> {
        let [x, y, z] = self.cubes;
        if self.cubes.iter().any(|&cubes| cubes > MOST_CUBES) {
            return None;
        }
        let count = CubeCount::Static(x as u32, y as u32, z as u32);
        if x * y * z == 0 {
            return Some(());
        }
        let client = self.outputs.first()?.0.client.clone();
        let mut arguments = KernelArguments::new();
        for (buffers, io) in [(self.inputs, BufferIOAttr::ReadOnly), (self.outputs, BufferIOAttr::WriteOnly)]
        {
            for buffer in buffers {
                arguments = arguments.with_buffer_io(buffer.0.handle.clone().binding(), io);
            }
        }
        let words = self.params.chunks(2);
        let words = words.map(|pair| pair.iter().rev().fold(0, |word, &half| (word << 32) | u64::from(half)));
        arguments = arguments.with_info(MetadataBindingInfo::custom(words.collect()));
        let kernel = Kernel {
            source: self.source,
            entry: self.entry,
            elem: self.elem,
            constants: self.constants.to_vec(),
        };
        client.launch(Box::new(kernel), count, arguments);
        Some(())
    }
}

/// A parameter of [`Launch::params`]; `None` where it does not fit.
pub(crate) fn word(value: usize) -> Option<u32> {
    // Kernels count in i32 where a difference may be negative.
    u32::try_from(value).ok().filter(|&value| value <= i32::MAX as u32)
}

/// A source with what is put before it.
#[derive(Debug)]
struct Kernel {
    source: &'static [&'static str],
    entry: &'static str,
    elem: DType,
    constants: Vec<(&'static str, u32)>,
}

impl Kernel {
    fn text(&self) -> String {
        let (extension, elem) = match self.elem {
            DType::F16 => ("enable f16;\n", "f16"),
            _ => ("", "f32"),
        };
        let mut text = format!("{extension}alias elem = {elem};\nconst THREADS: u32 = {THREADS}u;\n");
        for (name, value) in &self.constants {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
            if *name == "WIDTH" {
                text.push_str(vectors(*value));
            }
        }
        text + &self.source.concat()
    }
}

/// Vectors of `elem` and of f32, and the sum over one.
fn vectors(width: u32) -> &'static str {
    match width {
        4 => {
            "alias elems = vec4<elem>;\nalias floats = vec4<f32>;\n\
             fn across(v: floats) -> f32 { return (v.x + v.y) + (v.z + v.w); }\n"
        }
        2 => {
            "alias elems = vec2<elem>;\nalias floats = vec2<f32>;\n\
             fn across(v: floats) -> f32 { return v.x + v.y; }\n"
        }
        _ => "alias elems = elem;\nalias floats = f32;\nfn across(v: floats) -> f32 { return v; }\n",
    }
}

impl KernelMetadata for Kernel {
    fn name(&self) -> &'static str {
        self.entry
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().cube_dim(CubeDim::new_1d(THREADS).0).mode(ExecutionMode::Unchecked).info((
            self.entry,
            self.elem,
            self.constants.clone(),
        ))
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Kernel {
    fn define(&self) -> KernelDefinition {
        let settings =
            KernelSettings::new(CubeDim::new_1d(THREADS).0, ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let entrypoint_name = self.entry.to_owned();
        Some(PrecompiledSource { source: self.text(), entrypoint_name, lang: "wgsl" })
    }
}
