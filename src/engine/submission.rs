//! What a caller hands in.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, Degrade};
use super::cost::{Model, Price};
use super::metrics::Labels;
use super::rejected::{Reason, Rejected};
use super::scheduler::Offer;
use super::shell::{Key, Origin, Priced, Variant};
use super::worker::guarded;

/// A request with who wants it, how soon, and what else would do.
#[derive(Clone, Debug)]
pub struct Submission<R> {
    /// What is asked for.
    pub request: R,
    /// Who asks; tenants of one class share it equally.
    pub tenant: Arc<str>,
    /// Name of the class.
    pub class: Arc<str>,
    /// How long the submitter waits, from submission. No step begins after that.
    pub deadline: Option<Duration>,
    /// What the submitter agrees to get where the engine is loaded or the deadline near.
    pub degrade: Degrade,
    /// Handed through to logs and the outcome.
    pub tags: Vec<(String, String)>,
    /// A repeated submission of this tenant with the same key gets the same job. Also by what a retry
    /// is known.
    pub idempotency_key: Option<Arc<str>>,
    /// A preview after every so many steps, for whoever listens to the job's events.
    pub preview_every: Option<NonZeroU32>,
    /// A checkpoint after every so many steps, for whoever listens to the job's events.
    pub checkpoint_every: Option<NonZeroU32>,
}

impl<R> Submission<R> {
    /// A submission without deadline, previews, checkpoints or consent to get less.
    pub fn new(request: R, tenant: impl Into<Arc<str>>, class: impl Into<Arc<str>>) -> Self {
        Self {
            request,
            tenant: tenant.into(),
            class: class.into(),
            deadline: None,
            degrade: Degrade::default(),
            tags: Vec::new(),
            idempotency_key: None,
            preview_every: None,
            checkpoint_every: None,
        }
    }

    pub(super) fn labels(&self) -> Labels {
        Labels { class: self.class.clone(), tenant: self.tenant.clone(), tags: self.tags.as_slice().into() }
    }

    pub(super) fn price<B: Backend<Request = R>>(self, backend: &B) -> Result<Priced<B>, Rejected> {
        let price = guarded(|| backend.price(&self.request, Model::Main));
        let mut prices = vec![valid(price)?];
        let alternatives = if self.degrade.is_none() {
            Vec::new()
        } else {
            valid(guarded(|| Ok::<_, B::Error>(backend.alternatives(&self.request, &self.degrade))))?
        };
        let mut others = Vec::new();
        for alternative in alternatives {
            prices.push(valid(guarded(|| backend.price(&alternative.request, alternative.model)))?);
            let changed = Some((alternative.requested, alternative.actual));
            others.push(Variant { origin: Origin::Request(alternative.request), changed });
        }
        let (request, rest) = self.split();
        let mut variants = vec![Variant { origin: Origin::Request(request), changed: None }];
        variants.append(&mut others);
        Ok(rest.priced(prices, variants))
    }

    fn split(self) -> (R, Submission<()>) {
        let rest = Submission {
            request: (),
            tenant: self.tenant,
            class: self.class,
            deadline: self.deadline,
            degrade: self.degrade,
            tags: self.tags,
            idempotency_key: self.idempotency_key,
            preview_every: self.preview_every,
            checkpoint_every: self.checkpoint_every,
        };
        (self.request, rest)
    }
}

impl Submission<()> {
    pub(super) fn price_checkpoint<B: Backend>(
        self,
        backend: &B,
        bytes: Arc<[u8]>,
        allow_inexact: bool,
    ) -> Result<Priced<B>, Rejected> {
        let price = valid(guarded(|| backend.inspect(&bytes, allow_inexact)))?;
        let origin = Origin::Checkpoint { bytes, allow_inexact };
        Ok(self.priced(vec![price], vec![Variant { origin, changed: None }]))
    }

    fn priced<B: Backend>(self, prices: Vec<Price>, variants: Vec<Variant<B::Request>>) -> Priced<B> {
        let key = self.idempotency_key.clone();
        Priced {
            labels: self.labels(),
            offer: Offer {
                tenant: self.tenant.clone(),
                class: self.class,
                deadline: None,
                prices,
                retry_key: self.idempotency_key,
                jitter: 0.0,
            },
            variants,
            key: key.map(|key| Key { tenant: self.tenant, key }),
            deadline: self.deadline,
            preview_every: self.preview_every,
            checkpoint_every: self.checkpoint_every,
        }
    }
}

/// What the backend said about a request, or why it cannot be accepted.
fn valid<T, E: std::error::Error>(result: Result<Result<T, E>, String>) -> Result<T, Rejected> {
    let invalid = |message| Rejected::never(Reason::Invalid { message });
    result.map_err(|panic| invalid(format!("panicked: {panic}")))?.map_err(|error| invalid(error.to_string()))
}
