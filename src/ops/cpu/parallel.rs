//! Splitting work over rayon's pool, and the buffers that workers share.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Multiply-adds below which waking a second thread costs more than it saves.
pub(crate) const SERIAL_WORK: usize = 400_000;

/// How many tasks to cut `work` multiply-adds into.
pub(crate) fn tasks(work: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return 1;
    }
    // A few tasks a thread once they are long, so that a slower core does not hold up the rest.
    let per_thread = if work / threads > 32 * SERIAL_WORK { 3 } else { 1 };
    (work / SERIAL_WORK).clamp(1, threads * per_thread)
}

/// Calls `task(0..count)`, each index once, on this thread and on idle threads of rayon's pool.
pub(crate) fn run(count: usize, task: impl Fn(usize) + Sync) {
    if count <= 1 {
        return (0..count).for_each(task);
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            task(index);
        }
    };
    let helpers = rayon::current_num_threads().min(count) - 1;
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// The `index`-th of `parts` nearly equal ranges of `0..length`, cut at multiples of `unit`.
pub(crate) fn part(length: usize, parts: usize, unit: usize, index: usize) -> Range<usize> {
    let units = length.div_ceil(unit);
    let cut = |i: usize| (units * i / parts * unit).min(length);
    cut(index)..cut(index + 1)
}

/// A buffer whose parts are written by several threads at once.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice` and `pointer`, whose callers keep threads to disjoint elements.
#[allow(unsafe_code, reason = "workers write disjoint parts of one output")]
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "workers write disjoint parts of one output")]
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), length: buffer.len(), lifetime: PhantomData }
    }

    /// The elements of `range`, cut to the buffer.
    ///
    /// # Safety
    /// No other thread may hold any of these elements while the slice lives.
    #[allow(unsafe_code, clippy::mut_from_ref, reason = "workers write disjoint parts of one output")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        let end = range.end.min(self.length);
        let start = range.start.min(end);
        // SAFETY: in bounds by the two lines above; exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }

    /// Where element `offset` lies, for kernels that write interleaved columns.
    pub(crate) fn pointer(&self, offset: usize) -> *mut T {
        debug_assert!(offset <= self.length);
        self.start.wrapping_add(offset)
    }
}

/// Cuts `out` into parts of a multiple of `unit` elements and fills them, in parallel where `work` (in
/// multiply-adds) pays for it. `fill` gets the part's first element and the part.
pub(crate) fn fill<T: Send>(out: &mut [T], unit: usize, work: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
    let length = out.len();
    let parts = tasks(work).min(length.div_ceil(unit.max(1))).max(1);
    if parts == 1 {
        return fill(0, out);
    }
    let shared = Shared::new(out);
    run(parts, |index| {
        let range = part(length, parts, unit, index);
        // SAFETY: the parts of different indices do not overlap, and each index runs once.
        #[allow(unsafe_code, reason = "disjoint parts of one output")]
        let slice = unsafe { shared.slice(range.clone()) };
        fill(range.start, slice);
    });
}

/// A vector of `length` elements to be written by a kernel.
#[allow(unsafe_code, clippy::uninit_vec, reason = "zeroing is a pass over memory that every kernel repeats")]
pub(crate) fn output(length: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    // SAFETY: the capacity is `length`, every bit pattern is an f32, and each kernel writes all elements of its
    // output before any is read.
    unsafe { values.set_len(length) };
    values
}

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A cache line, for alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen floats fill the 64 bytes, so there is no padding.
#[allow(unsafe_code, reason = "views aligned lines as floats")]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "views aligned lines as floats")]
unsafe impl bytemuck::Pod for Line {}

/// Lends this thread's scratch memory: `lengths` floats each, 64-byte aligned, with whatever was left there.
pub(crate) fn with_scratch<const N: usize, R>(
    lengths: [usize; N],
    use_scratch: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let lines: usize = lengths.iter().map(|length| length.div_ceil(16)).sum();
    // Taken out, not borrowed: a nested call gets memory of its own.
    let mut buffer = SCRATCH.take();
    if buffer.len() < lines {
        buffer.resize(lines, Line([0.0; 16]));
    }
    let mut rest: &mut [f32] = bytemuck::cast_slice_mut(&mut buffer);
    let parts = lengths.map(|length| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(length.next_multiple_of(16));
        rest = tail;
        &mut part[..length]
    });
    let result = use_scratch(parts);
    SCRATCH.set(buffer);
    result
}
