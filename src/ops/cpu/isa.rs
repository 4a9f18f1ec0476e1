//! Which instruction set the kernels use, found at run time, and how a loop is compiled for each.

/// Instruction sets with a code path of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 F, BW, DQ, VL with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the target guarantees.
    Portable,
}

impl Isa {
    /// The best one this processor has. The standard library caches the answer.
    #[inline]
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if fma && avx512 {
                return Self::Avx512;
            }
            if fma {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

/// Whether the portable path has a fused multiply-add in hardware.
pub(crate) const PORTABLE_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Defines a function whose body is compiled once for each instruction set and chosen at run time.
///
/// In the body `FMA` says whether [`fma`](super::math::fma) fuses.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, reason = "calling a function compiled for a detected instruction set")]
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters, reason = "not every body multiplies")]
            fn portable<const FMA: bool>($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) $(-> $ret)? { portable::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $ret)? { portable::<true>($($arg),*) }
                match $crate::ops::cpu::isa::Isa::detect() {
                    // SAFETY: `detect` found every feature the function enables.
                    $crate::ops::cpu::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::cpu::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::cpu::isa::Isa::Portable => {}
                }
            }
            portable::<{ $crate::ops::cpu::isa::PORTABLE_FMA }>($($arg),*)
        }
    };
}
pub(crate) use multiversion;
