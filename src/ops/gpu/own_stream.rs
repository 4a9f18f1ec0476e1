//! Launches with shared memory that cubecl's launches do not bring, on a CUDA stream of our own beside its streams, in
//! the context that it uses. **Has never run on a GPU.**
//!
//! A launch is made on the thread that cubecl hands its own work to the driver on, between two pieces of it: what was
//! asked of cubecl before has been handed over, what is asked after has not. There an event takes in all work of the
//! context so far, our stream waits for it, the kernel goes onto our stream, a second event follows it, and all work
//! that comes to the context after waits for that one. So the kernel stands in cubecl's order as if it were on the
//! stream that asked for it.
//!
//! Memory: the buffers are held until the second wait is set. Cubecl gives a buffer's memory to another, frees it or
//! moves it only by work that it hands to the driver later, which waits for our kernel.
//!
//! A kernel that does not compile, load or launch is remembered, and said once through `tracing`; its operation then
//! runs the kernel of sm_80 through cubecl. A capture of the context's work into a graph would not hold these events.
#![allow(unsafe_code, reason = "the CUDA driver's interface")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use cubecl::server::Handle;
use cubecl_runtime::client::Client;
use cubecl_runtime::runtime::Runtime;
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

use super::Buffer;
use super::hopper::{Boxes, TensorMap};
use super::plan::Plan;

/// Where cubecl keeps a device's memory.
type Server = <cubecl::cuda::CudaRuntime as Runtime>::Server;

/// What failed, and how.
type Failure = String;

/// [`Plan::launch`] for a plan with shared memory.
pub(super) fn launch(plan: &Plan, inputs: &[&Buffer], outputs: &[&Buffer]) -> Option<()> {
    let first = &outputs.first()?.0;
    let CubeDevice::Cuda(device) = &first.device else { return None };
    let handles: Vec<_> = inputs.iter().chain(outputs).map(|buffer| buffer.0.handle.clone()).collect();
    let client = &first.client;
    let launched = client.exclusive(move || launch_here(client, device.index, plan, handles));
    launched.inspect_err(|error| said(plan, error)).ok()?
}

/// On the thread that hands cubecl's work of the device to the driver.
fn launch_here(client: &Client, device: usize, plan: &Plan, handles: Vec<Handle>) -> Option<()> {
    let buffers = handles.into_iter().map(|handle| client.get_resource::<Server>(handle));
    // They hold the memory until the end of this function.
    let buffers: Vec<_> = buffers.collect::<Result<_, _>>().inspect_err(|error| said(plan, error)).ok()?;
    let addresses: Vec<u64> = buffers.iter().map(|buffer| buffer.resource().ptr).collect();
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let device = devices.entry(device).or_insert_with(|| {
        let opened = Device::open(device);
        opened.inspect_err(|failure| tracing::warn!(device, failure, "no CUDA stream of our own")).ok()
    });
    device.as_mut()?.launch(plan, &addresses)
}

/// By ordinal; `None` where a stream could not be made.
static DEVICES: Mutex<BTreeMap<usize, Option<Device>>> = Mutex::new(BTreeMap::new());

/// `cuCtxRecordEvent` and `cuCtxWaitEvent`.
type OfContext = unsafe extern "C" fn(sys::CUcontext, sys::CUevent) -> sys::CUresult;

struct Device {
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// All work of the context before a launch; the launch.
    before: sys::CUevent,
    after: sys::CUevent,
    record_context: OfContext,
    context_waits: OfContext,
    /// By the text's fingerprint, what is put before it, and the entry; `None` of what failed.
    kernels: BTreeMap<(u64, String, &'static str), Option<sys::CUfunction>>,
}

// SAFETY: the driver's handles belong to the process; any thread may use them.
unsafe impl Send for Device {}

impl Device {
    fn open(ordinal: usize) -> Result<Self, Failure> {
        let device = i32::try_from(ordinal).map_err(failed("the ordinal"))?;
        let device = result::device::get(device).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device was just found. Cubecl's context is the device's primary one, and current on this thread
        // while it works; to keep it and to make it current again changes nothing for it.
        let context = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("cuDevicePrimaryCtxRetain"))?;
            result::ctx::set_current(context).map_err(failed("cuCtxSetCurrent"))?;
            context
        };
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                .map_err(failed("cuEventCreate"))
        };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Self {
            context,
            stream: stream.map_err(failed("cuStreamCreate"))?,
            before: event()?,
            after: event()?,
            record_context: of_context("cuCtxRecordEvent")?,
            context_waits: of_context("cuCtxWaitEvent")?,
            kernels: BTreeMap::new(),
        })
    }

    /// `addresses` of the plan's buffers, in the order of the kernel's parameters.
    fn launch(&mut self, plan: &Plan, addresses: &[u64]) -> Option<()> {
        let key = (plan.source.fingerprint, plan.prelude(), plan.entry);
        if !self.kernels.contains_key(&key) {
            let function = self.compile(plan).inspect_err(|failure| said(plan, failure)).ok();
            self.kernels.insert(key.clone(), function);
        }
        let function = self.kernels.get(&key).copied().flatten()?;
        // Another call may have buffers that a tensor map takes.
        let maps = maps_of(plan, addresses).inspect_err(|failure| said(plan, failure)).ok()?;
        let launched = self.enqueue(function, plan, &maps, addresses);
        if let Err(failure) = &launched {
            said(plan, failure);
            self.kernels.insert(key, None);
        }
        launched.ok()
    }

    fn compile(&self, plan: &Plan) -> Result<sys::CUfunction, Failure> {
        let options = vec!["--gpu-architecture=sm_90a".to_owned()];
        let options = CompileOptions { options, ..CompileOptions::default() };
        let image =
            compile_ptx_with_opts(plan.source.after(&plan.prelude()), options).map_err(failed("NVRTC"))?;
        let image = image.as_bytes().ok_or("NVRTC gave no image")?;
        let entry = CString::new(plan.entry).map_err(failed("the entry's name"))?;
        let bytes = i32::try_from(plan.grid.shared_bytes).map_err(failed("the shared memory"))?;
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the context outlives the process's use of it; NVRTC ends its image with a zero; the module is never
        // unloaded, so that the function stays valid.
        unsafe {
            result::ctx::set_current(self.context).map_err(failed("cuCtxSetCurrent"))?;
            let module =
                result::module::load_data(image.as_ptr().cast()).map_err(failed("cuModuleLoadData"))?;
            let function =
                result::module::get_function(module, entry).map_err(failed("cuModuleGetFunction"))?;
            result::function::set_function_attribute(function, most, bytes)
                .map_err(failed("cuFuncSetAttribute"))?;
            Ok(function)
        }
    }

    /// Puts the kernel after all work of the context so far, and before all that comes.
    fn enqueue(
        &self,
        function: sys::CUfunction,
        plan: &Plan,
        maps: &[sys::CUtensorMap],
        addresses: &[u64],
    ) -> Result<(), Failure> {
        let words = plan.words();
        let mut arguments: Vec<*mut c_void> = maps.iter().map(to_argument).collect();
        arguments.extend(addresses.iter().skip(maps.len()).map(to_argument));
        arguments.push(words.as_ptr().cast_mut().cast());
        let [x, y, z] = plan.grid.blocks;
        let (threads, shared_bytes) = ((plan.grid.threads, 1, 1), plan.grid.shared_bytes);
        // SAFETY: context, stream, events and function are alive, of one device, and the context is made current. The
        // driver reads the arguments before the launch returns; they have the sizes of the kernel's parameters: 128
        // bytes a tensor map, 8 an address, whole words of its struct. The buffers are as large as the plan was made
        // for, and live until work that comes after waits for this kernel.
        unsafe {
            result::ctx::set_current(self.context).map_err(failed("cuCtxSetCurrent"))?;
            (self.record_context)(self.context, self.before).result().map_err(failed("cuCtxRecordEvent"))?;
            result::stream::wait_event(
                self.stream,
                self.before,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
            .map_err(failed("cuStreamWaitEvent"))?;
            result::launch_kernel(function, (x, y, z), threads, shared_bytes, self.stream, &mut arguments)
                .map_err(failed("cuLaunchKernel"))?;
            let ordered = result::event::record(self.after, self.stream)
                .and_then(|()| (self.context_waits)(self.context, self.after).result());
            // The kernel is on its way: nothing may take its place. Where later work cannot wait for it, this thread does;
            // where that fails as well, the context is lost, and reading the output says so.
            if let Err(error) = ordered {
                let waited = result::stream::synchronize(self.stream);
                tracing::warn!(kernel = plan.entry, %error, ?waited, "later work waits on the host for our stream");
            }
            Ok(())
        }
    }
}

fn maps_of(plan: &Plan, addresses: &[u64]) -> Result<Vec<sys::CUtensorMap>, Failure> {
    if let Some(address) = addresses.iter().find(|address| !address.is_multiple_of(16)) {
        return Err(format!("a buffer at {address:#x}, not a multiple of 16"));
    }
    let maps = plan.maps.iter().zip(addresses);
    maps.map(|(map, &address)| map.encode(address, plan.target.elem)).collect()
}

/// How the driver takes an argument.
fn to_argument<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// A function that drivers before CUDA 12.5 do not have.
fn of_context(name: &str) -> Result<OfContext, Failure> {
    // SAFETY: the driver is loaded, which cubecl's client shows; both names have this type in cuda.h.
    unsafe { sys::culib().get::<OfContext>(name.as_bytes()).map(|symbol| *symbol).map_err(failed(name)) }
}

fn failed<E: Display>(call: &str) -> impl FnOnce(E) -> Failure {
    move |error| format!("{call}: {error}")
}

fn said(plan: &Plan, failure: &dyn Display) {
    tracing::warn!(kernel = plan.entry, %failure, "the kernel of sm_80 runs in its place");
}

impl TensorMap {
    /// For a buffer at `address`.
    fn encode(&self, address: u64, elem: DType) -> Result<sys::CUtensorMap, Failure> {
        let dtype = match elem {
            DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let swizzle = match self.swizzle {
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let interleave = sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        let promotion = sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
        // Zeros.
        let outside = sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        let (rank, at) = (self.sizes.len() as u32, address as *mut c_void);
        let (sizes, pitches) = (self.sizes.as_ptr(), self.pitches.as_ptr());
        let mut map = MaybeUninit::uninit();
        // SAFETY: the arrays have `rank` elements, `rank - 1` pitches and `rank - 2` corners, and outlive the calls,
        // which write the whole map where they succeed.
        unsafe {
            let status = match &self.boxes {
                Boxes::Tiled(boxes) => {
                    let steps = vec![1; boxes.len()];
                    sys::cuTensorMapEncodeTiled(
                        map.as_mut_ptr(),
                        dtype,
                        rank,
                        at,
                        sizes,
                        pitches,
                        boxes.as_ptr(),
                        steps.as_ptr(),
                        interleave,
                        swizzle,
                        promotion,
                        outside,
                    )
                }
                Boxes::Pixels(of) => {
                    let [step_x, step_y] = of.steps;
                    let steps = [1, step_x, step_y, 1];
                    sys::cuTensorMapEncodeIm2col(
                        map.as_mut_ptr(),
                        dtype,
                        rank,
                        at,
                        sizes,
                        pitches,
                        of.lower.as_ptr(),
                        of.upper.as_ptr(),
                        of.channels,
                        of.pixels,
                        steps.as_ptr(),
                        interleave,
                        swizzle,
                        promotion,
                        outside,
                    )
                }
            };
            status.result().map_err(failed("cuTensorMapEncode"))?;
            Ok(map.assume_init())
        }
    }
}
