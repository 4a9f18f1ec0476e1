//! What launches on Hopper have besides: tensor maps, and the variants of `gemm_sm90.cuh`, as plain values.

use burn::tensor::DType;

use super::plan::{Grid, Target, word};

/// What plans ask of a device of compute capability 9.0. The kernels are for no other: wgmma came with it and went
/// with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hopper {
    pub(crate) multiprocessors: u32,
    /// Whether a launch may bring shared memory, on a stream of our own.
    pub(crate) own_stream: bool,
}

impl Target {
    /// The device, where its kernels take the dtype: wgmma sums products of f16 and bf16 in f32.
    pub(crate) fn halves_on_hopper(self) -> Option<Hopper> {
        self.hopper.filter(|_| matches!(self.elem, DType::F16 | DType::BF16))
    }

    /// The same device, with the kernels of sm_80 alone.
    pub(crate) fn without_hopper(self) -> Self {
        Self { hopper: None, ..self }
    }
}

/// How TMA reads a buffer of f16 or bf16: `CUtensorMap`, before it is encoded. Everything from the innermost dimension
/// out; outside of the tensor it reads zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorMap {
    pub(crate) sizes: Vec<u64>,
    /// The bytes from one to the next, of all dimensions but the innermost.
    pub(crate) pitches: Vec<u64>,
    pub(crate) boxes: Boxes,
    /// Bytes of a box's row, within which its chunks of 16 bytes are swizzled: 128, 64 or 32.
    pub(crate) swizzle: u32,
}

/// What one copy takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Boxes {
    /// As many elements of each dimension.
    Tiled(Vec<u32>),
    Pixels(Pixels),
}

/// Im2col mode over channels, width, height and pictures: a column of pixels in the order of y's, x before y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) channels: u32,
    pub(crate) pixels: u32,
    /// The bounding box of the kernel's first tap: from the picture's first pixel, from its last.
    pub(crate) lower: [i32; 2],
    pub(crate) upper: [i32; 2],
    pub(crate) steps: [u32; 2],
}

impl Pixels {
    /// Within what TMA takes.
    pub(crate) fn fit(&self) -> bool {
        let corners = self.lower.iter().chain(&self.upper).all(|corner| (-128..128).contains(corner));
        let steps = self.steps.iter().all(|step| (1..=8).contains(step));
        corners && steps && self.channels <= 256 && self.pixels <= 1024
    }
}

impl TensorMap {
    /// `None` where TMA takes no such boxes.
    pub(crate) fn tiled(sizes: &[usize], boxes: &[u32]) -> Option<Self> {
        let fits = sizes.len() == boxes.len() && boxes.iter().all(|size| (1..=256).contains(size));
        let &row = boxes.first()?;
        if fits { Self::dense(sizes, row, Boxes::Tiled(boxes.to_vec())) } else { None }
    }

    /// `None` where TMA takes no such pixels.
    pub(crate) fn pixels(sizes: [usize; 4], of: Pixels) -> Option<Self> {
        if of.fit() { Self::dense(&sizes, of.channels, Boxes::Pixels(of)) } else { None }
    }

    /// `row`: elements of a box's row.
    fn dense(sizes: &[usize], row: u32, boxes: Boxes) -> Option<Self> {
        const ELEMENT: u64 = 2;
        let swizzle = row.checked_mul(ELEMENT as u32).filter(|bytes| matches!(bytes, 32 | 64 | 128))?;
        let sizes: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
        let mut bytes = ELEMENT;
        let mut pitches = Vec::with_capacity(sizes.len());
        for &size in &sizes {
            bytes = bytes.checked_mul(size)?;
            pitches.push(bytes);
        }
        // The last of them is the whole tensor.
        pitches.pop();
        let sized = (2..=5).contains(&sizes.len());
        let counted = sizes.iter().all(|size| (1..=u64::from(u32::MAX)).contains(size));
        let even = pitches.iter().all(|pitch| pitch.is_multiple_of(16) && *pitch < 1 << 40);
        (sized && counted && even).then_some(Self { sizes, pitches, boxes, swizzle })
    }
}

/// A variant of `gemm_sm90.cuh`: tiles of 128 by `outputs`, over stages of `inputs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) outputs: u32,
    pub(crate) inputs: u32,
    pub(crate) stages: u32,
    /// Whether the launch brings the shared memory.
    pub(crate) dynamic: bool,
    threads: u32,
    /// Blocks of one multiprocessor at once.
    blocks: u32,
}

/// Within the static 48 KB of a launch through cubecl.
pub(crate) const STATIC: Ring =
    Ring { outputs: 128, inputs: 32, stages: 2, dynamic: false, threads: 288, blocks: 2 };
pub(crate) const MIDDLE: Ring =
    Ring { outputs: 128, inputs: 64, stages: 3, dynamic: true, threads: 288, blocks: 2 };
pub(crate) const LARGE: Ring =
    Ring { outputs: 256, inputs: 64, stages: 4, dynamic: true, threads: 384, blocks: 1 };

/// Rows of a tile.
pub(crate) const TILE_ROWS: u32 = 128;

/// What a picture must ask of a product, in floating-point operations, for a launch on a stream of our own: 100 µs at
/// 500 TFLOP/s. Such a launch waits for cubecl's queue and has the device pass two events, some tens of microseconds
/// in all. A ring of four stages is expected to run at about twice the rate of the static one, which at this size
/// is worth about 100 µs. Expected, not measured.
const LEAST_WORK: u64 = 50_000_000_000;

impl Ring {
    /// The variant for what one picture asks: `rows` by `outputs`, sums of `terms`, of which `inputs` lie side by side.
    /// `None` where the kernel of sm_80 serves: what has no whole chunks of 8, or leaves most of a tile or stage idle.
    /// All variants give the same bits.
    pub(crate) fn choose(
        target: Target,
        rows: usize,
        outputs: usize,
        inputs: usize,
        terms: usize,
    ) -> Option<(Hopper, Self)> {
        let hopper = target.halves_on_hopper()?;
        let chunks = inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
        if !chunks || rows < 128 || outputs < 128 || inputs < 64 {
            return None;
        }
        let products =
            [rows, outputs, terms].iter().fold(1, |all: u64, &size| all.saturating_mul(size as u64));
        let ring = match hopper.own_stream && products >= LEAST_WORK / 2 {
            true if outputs.is_multiple_of(LARGE.outputs as usize) => LARGE,
            true => MIDDLE,
            false => STATIC,
        };
        Some((hopper, ring))
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, u32)> {
        let numbers = [self.outputs, self.inputs, self.stages, u32::from(self.dynamic)];
        ["TILE_N", "TILE_K", "STAGES", "DYNAMIC"].into_iter().zip(numbers).collect()
    }

    /// As many blocks as there are tiles, or fit on the device at once. `None` beyond what the kernels count.
    pub(crate) fn grid(self, target: Target, hopper: Hopper, rows: usize, outputs: usize) -> Option<Grid> {
        // Tiles reach beyond the last row.
        [rows, outputs].into_iter().try_for_each(|size| word(size.checked_add(256)?).map(drop))?;
        let tiles = rows.div_ceil(TILE_ROWS as usize).checked_mul(outputs.div_ceil(self.outputs as usize))?;
        let at_once = hopper.multiprocessors.checked_mul(self.blocks)?;
        let blocks = word(tiles)?.min(at_once);
        let shared_bytes = if self.dynamic { self.memory() } else { 0 };
        let grid = target.grid([blocks as usize, 1, 1], self.threads as usize)?;
        Some(Grid { shared_bytes, ..grid })
    }

    /// The stages of two boxes, two barriers a stage, and what it takes to start at a multiple of 1024.
    const fn memory(self) -> u32 {
        self.stages * (TILE_ROWS + self.outputs) * self.inputs * 2 + self.stages * 16 + 1024
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Language;
    use super::*;

    fn target(own_stream: bool) -> Target {
        let hopper = Some(Hopper { multiprocessors: 132, own_stream });
        Target { language: Language::Cuda, elem: DType::BF16, hopper }
    }

    fn chosen(target: Target, [rows, outputs, inputs]: [usize; 3]) -> Option<Ring> {
        Ring::choose(target, rows, outputs, inputs, inputs).map(|(_, ring)| ring)
    }

    #[test]
    fn large_products_go_to_the_stream_of_our_own_and_the_rest_through_cubecl() {
        // Of a FLUX block, of SDXL's attention, of a caption.
        for (sizes, own, client) in [
            ([4608, 12288, 3072], Some(LARGE), Some(STATIC)),
            ([16384, 1152, 1152], Some(STATIC), Some(STATIC)),
            ([16384, 1152, 2304], Some(MIDDLE), Some(STATIC)),
            ([1024, 1280, 1280], Some(STATIC), Some(STATIC)),
            ([77, 1280, 2048], None, None),
            ([1024, 1280, 1284], None, None),
            ([1024, 1284, 1280], None, None),
            ([1024, 1280, 16], None, None),
        ] {
            assert_eq!(chosen(target(true), sizes), own, "{sizes:?}");
            assert_eq!(chosen(target(false), sizes), client, "{sizes:?}");
        }
        let f32 = Target { elem: DType::F32, ..target(true) };
        assert_eq!(chosen(f32, [4608, 12288, 3072]), None);
        assert_eq!(chosen(target(true).without_hopper(), [4608, 12288, 3072]), None);
    }

    /// H100 has 132 multiprocessors; the bytes are those of a launch with the ring of kernels/README.md.
    #[test]
    fn a_grid_has_as_many_blocks_as_the_device_runs_at_once() {
        let grid = |ring: Ring, rows, outputs| {
            let grid =
                ring.grid(target(true), Hopper { multiprocessors: 132, own_stream: true }, rows, outputs);
            grid.map(|grid| (grid.blocks, grid.threads, grid.shared_bytes))
        };
        assert_eq!(grid(LARGE, 4608, 12288), Some(([132, 1, 1], 384, 197_696)));
        assert_eq!(grid(MIDDLE, 4608, 12288), Some(([264, 1, 1], 288, 99_376)));
        assert_eq!(grid(STATIC, 4608, 12288), Some(([264, 1, 1], 288, 0)));
        assert_eq!(grid(STATIC, 300, 200), Some(([6, 1, 1], 288, 0)));
        assert_eq!(grid(STATIC, i32::MAX as usize - 255, 8), None);
    }

    #[test]
    fn a_tensor_map_has_the_pitches_of_a_dense_tensor_and_the_limits_of_tma() {
        let map = TensorMap::tiled(&[320, 9, 640], &[64, 1, 128]).unwrap();
        assert_eq!((map.sizes, map.pitches, map.swizzle), (vec![320, 9, 640], vec![640, 5760], 128));
        // A row of 12 elements, a box of 257, one wider than its swizzle, too many bytes a matrix.
        assert_eq!(TensorMap::tiled(&[12, 9], &[16, 8]), None);
        assert_eq!(TensorMap::tiled(&[320, 640], &[64, 257]), None);
        assert_eq!(TensorMap::tiled(&[320, 640], &[128, 64]), None);
        assert_eq!(TensorMap::tiled(&[1 << 20, 1 << 19, 2], &[64, 64, 1]), None);
        let around = Pixels { channels: 32, pixels: 128, lower: [-1, -1], upper: [-1, -1], steps: [1, 1] };
        assert!(TensorMap::pixels([64, 8, 8, 2], around).is_some());
        assert_eq!(TensorMap::pixels([64, 8, 8, 2], Pixels { lower: [-129, 0], ..around }), None);
        assert_eq!(TensorMap::pixels([64, 8, 8, 2], Pixels { upper: [0, 128], ..around }), None);
        assert_eq!(TensorMap::pixels([64, 8, 8, 2], Pixels { steps: [9, 1], ..around }), None);
    }
}
