//! Classifier-free guidance: when it acts, and how strongly. Both halves share a batch.

use crate::request::Guidance;

/// Guidance settled for one job: which steps need the negative half, and by what the halves combine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GuidancePlan {
    /// Away from the negative half, above 1.
    pub(crate) scale: f32,
    /// How far the result is scaled back to the positive half's standard deviation.
    pub(crate) rescale: f32,
    interval: (f32, f32),
}

impl GuidancePlan {
    /// `None` where the prompt alone steers (a scale up to 1, as in diffusers).
    pub(crate) fn new(guidance: &Guidance) -> Option<Self> {
        match guidance {
            Guidance::ClassifierFree { scale, rescale, interval, .. } if *scale > 1.0 => Some(Self {
                scale: *scale,
                rescale: *rescale,
                interval: (*interval.start(), *interval.end()),
            }),
            _ => None,
        }
    }

    /// Whether step `index` of `total` lies in the interval; positions run from 0 (first) to 1 (last).
    pub(crate) fn acts(&self, index: usize, total: usize) -> bool {
        let position = index as f32 / total.saturating_sub(1).max(1) as f32;
        (self.interval.0..=self.interval.1).contains(&position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_up_to_one_needs_no_negative_half() {
        assert_eq!(GuidancePlan::new(&Guidance::classifier_free(1.0)), None);
        assert_eq!(GuidancePlan::new(&Guidance::None), None);
        assert!(GuidancePlan::new(&Guidance::classifier_free(1.01)).is_some());
    }

    #[test]
    fn guidance_acts_within_its_interval_only() {
        let plan = GuidancePlan::new(&Guidance::classifier_free(5.0).within(0.25..=0.75)).unwrap();
        let acting: Vec<usize> = (0..9).filter(|&step| plan.acts(step, 9)).collect();
        assert_eq!(acting, [2, 3, 4, 5, 6]);
        let whole = GuidancePlan::new(&Guidance::classifier_free(5.0)).unwrap();
        assert!(whole.acts(0, 1));
    }
}
