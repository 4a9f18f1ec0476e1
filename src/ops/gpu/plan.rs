//! What a launch is made of, as plain values: shapes, dtype and language alone decide them, on any machine.

use std::fmt::Write as _;

use burn::tensor::DType;

use super::hopper::{Hopper, TensorMap};

/// What a device's driver compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Wgsl,
    Cuda,
}

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) language: Language,
    /// The dtype of what the kernels call `elem`: f32 or f16, in CUDA bf16 as well.
    pub(crate) elem: DType,
    /// Where the device is one.
    pub(crate) hopper: Option<Hopper>,
}

/// Threads of a workgroup, for WGSL kernels that name no other number of their own.
pub(crate) const THREADS: usize = 128;

/// Threads that share a row in `rows.wgsl`, an output in `matvec.wgsl`.
pub(crate) const LANES: usize = 32;

/// What wgpu allows in each direction of a grid, and CUDA in all but the first.
const MOST_CUBES: usize = 65_535;

impl Target {
    /// The widest access, in elements, that divides every one of `sizes`.
    pub(crate) fn width(self, sizes: &[usize]) -> usize {
        let divides = |width: &usize| sizes.iter().all(|size| size % width == 0);
        match self.language {
            Language::Wgsl => [4, 2].into_iter().find(divides),
            Language::Cuda => Some(self.chunk()).filter(divides),
        }
        .unwrap_or(1)
    }

    /// Elements in 16 bytes, CUDA's widest access.
    pub(crate) fn chunk(self) -> usize {
        16 / self.elem.size()
    }

    /// Enough blocks for `count` vectors of an element-wise kernel.
    pub(crate) fn elementwise(self, count: usize) -> Option<Grid> {
        // Vectors that a thread of WGSL writes.
        const ITEMS: usize = 4;
        match self.language {
            Language::Wgsl => self.spread(count.div_ceil(THREADS * ITEMS), THREADS),
            Language::Cuda => self.spread(count.div_ceil(256), 256),
        }
    }

    /// At least `count` blocks of `threads` threads; a WGSL kernel passes over those beyond.
    pub(crate) fn spread(self, count: usize, threads: usize) -> Option<Grid> {
        let rows = match self.language {
            Language::Wgsl => count.div_ceil(MOST_CUBES).max(1),
            Language::Cuda => 1,
        };
        self.grid([count.div_ceil(rows), rows, 1], threads)
    }

    /// `None` where the grid is larger than a launch can say.
    pub(crate) fn grid(self, blocks: [usize; 3], threads: usize) -> Option<Grid> {
        let most = match self.language {
            Language::Wgsl => MOST_CUBES,
            Language::Cuda => i32::MAX as usize,
        };
        let [x, y, z] = blocks;
        let fits = x <= most && y <= MOST_CUBES && z <= MOST_CUBES;
        fits.then_some(Grid {
            blocks: [x as u32, y as u32, z as u32],
            threads: threads as u32,
            shared_bytes: 0,
        })
    }
}

/// The blocks (workgroups) of a launch, and each one's threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// The shared memory that the launch brings to a block; 0 where the kernel's own is all.
    pub(crate) shared_bytes: u32,
}

/// The files of one kernel, each with its name, in the order of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) parts: &'static [(&'static str, &'static str)],
    /// Of the whole text: compiled kernels are kept under it.
    pub(crate) fingerprint: u64,
}

impl Source {
    pub(crate) const fn new(parts: &'static [(&'static str, &'static str)]) -> Self {
        Self { parts, fingerprint: fingerprint(parts) }
    }

    /// The whole text after what is put before it.
    pub(crate) fn after(&self, prelude: &str) -> String {
        std::iter::once(prelude).chain(self.parts.iter().map(|&(_, text)| text)).collect()
    }
}

/// FNV-1a over every text.
const fn fingerprint(parts: &[(&str, &str)]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut part = 0;
    while part < parts.len() {
        let text = parts[part].1.as_bytes();
        let mut at = 0;
        while at < text.len() {
            hash = (hash ^ text[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        part += 1;
    }
    hash
}

/// The [`Source`] of files in `kernels/`.
macro_rules! source {
    ($($part:literal),+) => {
        $crate::ops::gpu::plan::Source::new(&[
            $(($part, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $part)))),+
        ])
    };
}
pub(crate) use source;

/// One launch, but for its buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) source: Source,
    /// Also the launch's name in profiles.
    pub(crate) entry: &'static str,
    /// What changes the code, put before the source: `const NAME: u32` in WGSL, `#define NAME` in CUDA.
    pub(crate) constants: Vec<(&'static str, u32)>,
    /// Of the first buffers, which the kernel takes as these.
    pub(crate) maps: Vec<TensorMap>,
    /// The fields of the kernel's `Params`; floats by their bits.
    pub(crate) params: Vec<u32>,
    pub(crate) grid: Grid,
}

impl Plan {
    /// What stands before the source's text.
    pub(crate) fn prelude(&self) -> String {
        let mut text = match (self.target.language, self.target.elem) {
            (Language::Wgsl, DType::F16) => "enable f16;\nalias elem = f16;\n".to_owned(),
            (Language::Wgsl, _) => "alias elem = f32;\n".to_owned(),
            (Language::Cuda, elem) => format!("#define ELEM_{} 1\n", name(elem).to_uppercase()),
        };
        if self.target.language == Language::Wgsl {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "const THREADS: u32 = {}u;", self.grid.threads);
        }
        for &(name, value) in &self.constants {
            let _ = match self.target.language {
                Language::Wgsl => writeln!(text, "const {name}: u32 = {value}u;"),
                Language::Cuda => writeln!(text, "#define {name} {value}"),
            };
            if self.target.language == Language::Wgsl && name == "WIDTH" {
                text.push_str(vectors(value));
            }
        }
        text
    }

    /// `params` in words of 8 bytes, the last one filled up with zeros.
    pub(crate) fn words(&self) -> Vec<u64> {
        let words = self.params.chunks(2);
        words.map(|pair| pair.iter().rev().fold(0, |word, &half| (word << 32) | u64::from(half))).collect()
    }
}

/// The launches for a batch: one, or as many for parts of whole pictures as it takes where no launch holds all of them, each
/// with its first picture and their number. `None` where no launch holds even one: so what computes a picture depends on
/// that picture's shape alone.
pub(crate) fn parts<P>(batch: usize, plan: impl Fn(usize) -> Option<P>) -> Option<Vec<(usize, usize, P)>> {
    if let Some(all) = plan(batch) {
        return Some(vec![(0, batch, all)]);
    }
    let mut most = batch;
    while most > 1 {
        most = most.div_ceil(2);
        if plan(most).is_some() {
            let part = |first: usize| {
                let count = most.min(batch - first);
                Some((first, count, plan(count)?))
            };
            return (0..batch).step_by(most).map(part).collect();
        }
    }
    None
}

/// An element type's name in `kernels/`.
pub(crate) fn name(elem: DType) -> &'static str {
    match elem {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

/// WGSL's vectors of `elem`, of f32 and of its bits, the sum over one and its first value.
fn vectors(width: u32) -> &'static str {
    match width {
        4 => {
            "alias elems = vec4<elem>;\nalias floats = vec4<f32>;\nalias words = vec4<u32>;\n\
             fn across(v: floats) -> f32 { return (v.x + v.y) + (v.z + v.w); }\n\
             fn first_of(v: floats) -> f32 { return v.x; }\n"
        }
        2 => {
            "alias elems = vec2<elem>;\nalias floats = vec2<f32>;\nalias words = vec2<u32>;\n\
             fn across(v: floats) -> f32 { return v.x + v.y; }\n\
             fn first_of(v: floats) -> f32 { return v.x; }\n"
        }
        _ => {
            "alias elems = elem;\nalias floats = f32;\nalias words = u32;\n\
             fn across(v: floats) -> f32 { return v; }\n\
             fn first_of(v: floats) -> f32 { return v; }\n"
        }
    }
}

/// A field of [`Plan::params`]; `None` where it does not fit.
pub(crate) fn word(value: usize) -> Option<u32> {
    // Kernels count in i32 where a difference may be negative.
    u32::try_from(value).ok().filter(|&value| value <= i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of "foobar" in the authors' test vectors (Fowler, Noll, Vo).
    #[test]
    fn a_fingerprint_is_fnv_1a_of_all_parts_together() {
        assert_eq!(fingerprint(&[("a.cuh", "foo"), ("b.cu", "bar")]), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_batch_that_no_launch_holds_is_cut_into_parts_of_whole_pictures() {
        let holds = |most| parts(10, move |count| (count <= most).then_some(count));
        assert_eq!(holds(10), Some(vec![(0, 10, 10)]));
        assert_eq!(holds(9), Some(vec![(0, 5, 5), (5, 5, 5)]));
        assert_eq!(holds(4), Some(vec![(0, 3, 3), (3, 3, 3), (6, 3, 3), (9, 1, 1)]));
        assert_eq!(holds(1), Some((0..10).map(|first| (first, 1, 1)).collect()));
        assert_eq!(holds(0), None);
        assert_eq!(parts(1, |count| (count > 1).then_some(())), None);
    }

    #[test]
    fn a_grid_that_a_launch_cannot_say_is_refused() {
        let target = |language| Target { language, elem: DType::F32, hopper: None };
        let blocks = |language, count| target(language).spread(count, 128).map(|grid| grid.blocks);
        assert_eq!(blocks(Language::Cuda, 2_147_483_647), Some([2_147_483_647, 1, 1]));
        assert_eq!(blocks(Language::Cuda, 2_147_483_648), None);
        assert_eq!(blocks(Language::Wgsl, 65_535), Some([65_535, 1, 1]));
        assert_eq!(blocks(Language::Wgsl, 65_537), Some([32_769, 2, 1]));
        assert_eq!(target(Language::Wgsl).grid([1, 65_536, 1], 128), None);
    }
}
