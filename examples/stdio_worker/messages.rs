//! Messages as JSON, and what they mean to the engine.

use std::collections::HashMap;
use std::io::Cursor;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use aquatint::engine::{
    Bound, Degrade, DegradeReason, Failure, Finished, Progress, Reason, Rejected, Submission,
};
use aquatint::request::MAX_SIDE;
use aquatint::{Generation, Guidance, Input, Request};
use image::{ImageReader, Limits, RgbImage};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a client may ask for.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Command {
    Submit {
        id: String,
        #[serde(default)]
        request: Box<Wanted>,
        #[serde(default)]
        options: Options,
    },
    Resume {
        id: String,
        #[serde(default)]
        allow_inexact: bool,
        #[serde(default)]
        options: Options,
    },
    Cancel {
        id: String,
    },
    Checkpoint {
        id: String,
    },
    Drain {
        timeout_ms: Option<u64>,
    },
}

/// A picture, as a client describes it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Wanted {
    prompt: String,
    negative: Option<String>,
    guidance: Option<f32>,
    rescale: Option<f32>,
    interval: Option<(f32, f32)>,
    width: Option<u32>,
    height: Option<u32>,
    steps: Option<usize>,
    sampler: Option<String>,
    sigmas: Option<String>,
    seed: u64,
    count: Option<u32>,
    clip_skip: Option<usize>,
    strength: Option<f32>,
    raw: bool,
}

/// For whom, how soon, and what is told on the way.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    tenant: String,
    class: Option<String>,
    deadline_ms: Option<u64>,
    min_steps: Option<u32>,
    min_side: Option<u32>,
    preview_every: Option<NonZeroU32>,
    checkpoint_every: Option<NonZeroU32>,
}

/// Reads a header; else the id it names, if any, and what is wrong.
pub(crate) fn parse(header: &[u8]) -> Result<Command, (Option<String>, String)> {
    serde_json::from_slice(header).map_err(|error| {
        let fields: HashMap<String, Value> = serde_json::from_slice(header).unwrap_or_default();
        let id = fields.get("id").and_then(Value::as_str).map(str::to_owned);
        (id, format!("header: {error}"))
    })
}

impl Wanted {
    /// The request; `defaults` fills in the guidance where a client gives only a part of it.
    pub(crate) fn request(self, payload: &[u8], defaults: &Guidance) -> Result<Request, String> {
        let input = match self.strength {
            Some(strength) => Input::Image { image: picture(payload)?, strength },
            None if payload.is_empty() => Input::Text,
            None => return Err("request: expected a strength beside the picture, found none".to_owned()),
        };
        let sampler = self.sampler.as_deref().map(str::parse).transpose();
        let sigmas = self.sigmas.as_deref().map(str::parse).transpose();
        Ok(Request {
            guidance: self.guidance(defaults),
            input,
            width: self.width,
            height: self.height,
            steps: self.steps,
            sampler: sampler.map_err(|error| format!("sampler: {error}"))?,
            sigmas: sigmas.map_err(|error| format!("sigmas: {error}"))?,
            seed: self.seed,
            count: self.count,
            clip_skip: self.clip_skip,
            keep_raw: self.raw,
            prompt: self.prompt,
        })
    }

    fn guidance(&self, defaults: &Guidance) -> Option<Guidance> {
        if self.guidance.is_none()
            && self.negative.is_none()
            && self.rescale.is_none()
            && self.interval.is_none()
        {
            return None;
        }
        let mut guidance = match defaults {
            Guidance::ClassifierFree { .. } => defaults.clone(),
            _ => Guidance::classifier_free(1.0),
        };
        if let Guidance::ClassifierFree { scale, negative_prompt, rescale, interval } = &mut guidance {
            *scale = self.guidance.unwrap_or(*scale);
            *rescale = self.rescale.unwrap_or(*rescale);
            if let Some(negative) = &self.negative {
                negative_prompt.clone_from(negative);
            }
            if let Some((from, to)) = self.interval {
                *interval = from..=to;
            }
        }
        Some(guidance)
    }
}

/// A PNG, JPEG or WebP picture, within bounds: a small file can name a huge one.
fn picture(bytes: &[u8]) -> Result<RgbImage, String> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| format!("payload: {error}"))?;
    reader.limits(limits);
    Ok(reader.decode().map_err(|error| format!("payload: {error}"))?.to_rgb8())
}

impl Options {
    /// `request` under these options; `id` tells a retry from another's submission.
    pub(crate) fn submission<R>(self, request: R, id: &str, class: &Arc<str>) -> Submission<R> {
        Submission {
            deadline: self.deadline_ms.map(Duration::from_millis),
            degrade: Degrade { min_steps: self.min_steps, min_side: self.min_side, ..Degrade::default() },
            preview_every: self.preview_every,
            checkpoint_every: self.checkpoint_every,
            idempotency_key: Some(id.into()),
            ..Submission::new(request, self.tenant, self.class.map_or_else(|| class.clone(), Arc::from))
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(crate) fn rejected(id: &str, rejected: &Rejected) -> Value {
    let bound = |bound: Bound| match bound {
        Bound::Count => "count",
        Bound::Bytes => "bytes",
        Bound::Time => "time",
    };
    let (reason, detail) = match &rejected.reason {
        Reason::QueueFull { bound: full } => ("queue_full", json!({"bound": bound(*full)})),
        Reason::Quota { bound: full } => ("quota", json!({"bound": bound(*full)})),
        Reason::DeadlineUnreachable { earliest, alone, .. } => {
            let detail = json!({"earliest_ms": millis(*earliest), "alone_ms": millis(*alone)});
            ("deadline_unreachable", detail)
        }
        Reason::MemoryBudget { needed, budget } => {
            ("memory_budget", json!({"needed": needed, "budget": budget}))
        }
        Reason::ClassPaused { .. } => ("class_paused", Value::Null),
        Reason::Draining => ("draining", Value::Null),
        Reason::DeviceLost => ("device_lost", Value::Null),
        Reason::Invalid { .. } => ("invalid", Value::Null),
        _ => ("other", Value::Null),
    };
    json!({
        "type": "rejected",
        "id": id,
        "reason": reason,
        "detail": detail,
        "message": rejected.reason.to_string(),
        "retry": rejected.retry_makes_sense(),
        "retry_after_ms": rejected.retry_after.map(millis),
    })
}

pub(crate) fn invalid(id: &str, message: String) -> Value {
    rejected(id, &Rejected { reason: Reason::Invalid { message }, retry_after: None })
}

/// A header and the parts of its payload.
pub(crate) type Message = (Value, Vec<Vec<u8>>);

/// News of a job before its end.
pub(crate) fn news(id: &str, progress: Progress<Vec<RgbImage>>) -> Option<Message> {
    Some(match progress {
        Progress::Queued { position, finish } => (
            json!({"type": "queued", "id": id, "position": position, "finish_ms": millis(finish)}),
            Vec::new(),
        ),
        Progress::Started => (json!({"type": "started", "id": id}), Vec::new()),
        Progress::Step { done, total } => {
            (json!({"type": "step", "id": id, "done": done, "total": total}), Vec::new())
        }
        Progress::Preview(pictures) => {
            let files: Vec<Vec<u8>> = pictures.iter().filter_map(png).collect();
            let sizes: Vec<usize> = files.iter().map(Vec::len).collect();
            (json!({"type": "preview", "id": id, "pictures": sizes}), files)
        }
        Progress::Checkpoint { done, bytes } => checkpoint(id, Some(done), bytes.to_vec()),
        Progress::Ended => return None,
    })
}

fn png(picture: &RgbImage) -> Option<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).ok()?;
    Some(file.into_inner())
}

pub(crate) fn checkpoint(id: &str, done: Option<u32>, bytes: Vec<u8>) -> Message {
    (json!({"type": "checkpoint", "id": id, "done": done}), vec![bytes])
}

pub(crate) fn failed<E: std::fmt::Display>(id: &str, failure: &Failure<E>) -> Message {
    let reason = match failure {
        Failure::Suspended { checkpoint } => {
            return (json!({"type": "suspended", "id": id}), vec![checkpoint.to_vec()]);
        }
        Failure::Cancelled => "cancelled",
        Failure::DeadlineExceeded => "deadline_exceeded",
        Failure::Shed => "shed",
        Failure::Panicked { .. } => "panicked",
        Failure::NoResult => "no_result",
        Failure::DeviceLost => "device_lost",
        Failure::ShutDown => "shut_down",
        _ => "failed",
    };
    (json!({"type": "failed", "id": id, "reason": reason, "message": failure.to_string()}), Vec::new())
}

pub(crate) fn finished(id: &str, done: &Finished<Generation>) -> Message {
    let mut payload = Vec::new();
    let mut pictures = Vec::new();
    for picture in &done.output.images {
        let mut file = Vec::new();
        if let Err(error) = picture.write_png(&mut file) {
            let message = error.to_string();
            return (json!({"type": "failed", "id": id, "reason": "failed", "message": message}), Vec::new());
        }
        let (width, height) = picture.pixels.dimensions();
        pictures.push(json!({"seed": picture.seed, "width": width, "height": height, "bytes": file.len()}));
        payload.push(file);
    }
    let mut floats = |values: &[f32], shape: &[usize]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let described = json!({"shape": shape, "bytes": bytes.len()});
        payload.push(bytes);
        described
    };
    let raw = done.output.raw.as_ref().map(|raw| {
        let latents = floats(&raw.latents, &raw.latents_shape);
        json!({"latents": latents, "images": floats(&raw.images, &raw.images_shape)})
    });
    let applied = done.applied.as_ref().map(|applied| {
        let reason = match applied.reason {
            DegradeReason::Load => "load",
            DegradeReason::Deadline => "deadline",
            DegradeReason::Memory => "memory",
        };
        json!({"requested": applied.requested, "actual": applied.actual, "reason": reason})
    });
    let header = json!({
        "type": "finished",
        "id": id,
        "pictures": pictures,
        "raw": raw,
        "applied": applied,
        "notes": done.output.report.notes,
        "queued_ms": millis(done.queued),
        "latency_ms": millis(done.latency),
    });
    (header, payload)
}
