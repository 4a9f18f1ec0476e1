//! The worker process of `examples/stdio_worker`, driven over its pipes by a client that was written from
//! its documentation.
#![cfg(all(feature = "embedded", feature = "cpu"))]

use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aquatint::{DeviceChoice, Generation, Guidance, Input, LoadOptions, Pipeline, Request, Sampler};
use image::RgbImage;
use serde_json::{Value, json};

/// Longer than any answer takes on a busy machine; what is not there by then hangs.
const PATIENCE: Duration = Duration::from_secs(100);

fn pipeline() -> &'static Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    let options = LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() };
    PIPELINE.get_or_init(|| Pipeline::embedded(options).unwrap())
}

/// Test programs lie in `deps`, the examples that are built with them beside it.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(std::path::Path::parent).unwrap();
    let path = profile.join("examples").join(format!("stdio_worker{}", std::env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "{}: not there: cargo build --example stdio_worker makes it", path.display());
    path
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(program());
    command.args(["--device", "cpu"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn frame(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(4 + header.len() + payload.len()).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header);
    bytes.extend(payload);
    bytes
}

type Message = (Value, Vec<u8>);

fn read_frame(output: &mut impl Read) -> Option<Message> {
    let mut word = [0; 4];
    output.read_exact(&mut word).ok()?;
    let mut body = vec![0; u32::from_le_bytes(word) as usize];
    output.read_exact(&mut body).ok()?;
    let header_length = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
    let payload = body.split_off(4 + header_length);
    Some((serde_json::from_slice(&body[4..]).unwrap(), payload))
}

struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    frames: mpsc::Receiver<Message>,
}

impl Worker {
    fn start(arguments: &[&str]) -> Self {
        let mut child = spawn(arguments);
        let (input, mut output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, frames) = mpsc::channel();
        thread::spawn(move || {
            while let Some(frame) = read_frame(&mut output) {
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        let worker = Self { child, input, frames };
        let (ready, _) = worker.next();
        assert_eq!((&ready["type"], &ready["protocol"]), (&json!("ready"), &json!(1)));
        assert_eq!(ready["weights"], pipeline().weights_digest());
        worker
    }

    fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().unwrap();
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    fn send(&mut self, header: &Value, payload: &[u8]) {
        self.write(&frame(header.to_string().as_bytes(), payload));
    }

    fn next(&self) -> Message {
        self.frames.recv_timeout(PATIENCE).expect("no frame: the worker hangs or is gone")
    }

    /// The next frame of that type about that job; nothing may go wrong before it.
    fn until(&self, kind: &str, id: &str) -> Message {
        loop {
            let (header, payload) = self.next();
            if header["type"] == kind && header["id"] == id {
                return (header, payload);
            }
            assert!(!["failed", "rejected", "error"].map(Value::from).contains(&header["type"]), "{header}");
        }
    }

    /// The next answer of these kinds, past the news of jobs.
    fn answer(&self) -> Value {
        loop {
            let (header, _) = self.next();
            if ["accepted", "rejected", "error"].map(Value::from).contains(&header["type"]) {
                return header;
            }
        }
    }

    /// Ends the input; the worker must go in peace.
    fn end(mut self) {
        drop(self.input.take());
        while self.next().0["type"] != "drained" {}
        assert!(exit(&mut self.child).success());
        assert!(self.frames.recv_timeout(PATIENCE).is_err(), "a frame after the last");
    }

    /// Kills the process as `kill -9` does.
    fn kill(mut self) {
        self.child.kill().unwrap();
        assert!(!self.child.wait().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A process that has ended cannot be killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exit(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < until, "the worker does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

fn picture() -> RgbImage {
    RgbImage::from_fn(40, 56, |x, y| image::Rgb([(x * 6) as u8, (y * 4) as u8, 90]))
}

/// A request from text and one from a picture, as the protocol says them and as the library does.
fn both() -> [(Value, Vec<u8>, Request); 2] {
    let text = Request {
        width: Some(64),
        height: Some(48),
        steps: Some(5),
        seed: 7,
        sampler: Some(Sampler::DpmPlusPlus2MSde),
        guidance: Some(Guidance::classifier_free(3.0).negative("a dog")),
        count: Some(2),
        keep_raw: true,
        ..Request::new("a red apple on a blue background")
    };
    let said = json!({
        "prompt": "a red apple on a blue background", "width": 64, "height": 48, "steps": 5, "seed": 7,
        "sampler": "dpmpp_2m_sde", "guidance": 3.0, "negative": "a dog", "count": 2, "raw": true,
    });
    let image = Request {
        input: Input::Image { image: picture(), strength: 0.75 },
        width: Some(32),
        height: Some(32),
        steps: Some(6),
        seed: u64::MAX,
        sampler: Some(Sampler::UniPc),
        keep_raw: true,
        ..Request::new("a green frog")
    };
    let drawn = json!({
        "prompt": "a green frog", "width": 32, "height": 32, "steps": 6, "seed": u64::MAX,
        "sampler": "unipc", "strength": 0.75, "raw": true,
    });
    [(said, Vec::new(), text), (drawn, png(&picture()), image)]
}

/// Pixels, latents and floats of a `finished` frame are those of `generate`, to the bit.
fn assert_same((header, payload): &Message, whole: &Generation) {
    let mut rest = payload.as_slice();
    let mut take = |part: &Value| {
        let (part, others) = rest.split_at(usize::try_from(part["bytes"].as_u64().unwrap()).unwrap());
        rest = others;
        part
    };
    let pictures = header["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), whole.images.len());
    for (described, expected) in pictures.iter().zip(&whole.images) {
        let found = image::load_from_memory(take(described)).unwrap().to_rgb8();
        assert!(found == expected.pixels, "other pixels: {header}");
        assert_eq!(described["seed"], expected.seed);
    }
    let raw = whole.raw.as_ref().unwrap();
    for (name, expected) in [("latents", &raw.latents), ("images", &raw.images)] {
        let bytes: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(take(&header["raw"][name]) == bytes, "other {name}: {header}");
    }
    assert!(rest.is_empty());
}

#[test]
fn jobs_over_pipes_give_the_bits_of_generate() {
    let mut worker = Worker::start(&[]);
    for (index, (request, payload, _)) in both().iter().enumerate() {
        let options = json!({"tenant": "me", "class": "free", "preview_every": 2});
        let id = index.to_string();
        worker.send(&json!({"type": "submit", "id": id, "request": request, "options": options}), payload);
    }
    let mut kinds = [Vec::new(), Vec::new()];
    while kinds.iter().any(|kinds| !kinds.contains(&"finished".to_owned())) {
        let (header, payload) = worker.next();
        let index: usize = header["id"].as_str().unwrap().parse().unwrap();
        let kind = header["type"].as_str().unwrap().to_owned();
        if kind == "preview" {
            let size = header["pictures"][0].as_u64().unwrap() as usize;
            assert!(image::load_from_memory(&payload[..size]).is_ok());
        }
        if kind == "finished" {
            assert_eq!(header["applied"], Value::Null);
            assert_same(&(header, payload), &pipeline().generate(&both()[index].2).unwrap());
        }
        kinds[index].push(kind);
    }
    for kinds in kinds {
        assert_eq!(kinds[..3], ["accepted", "queued", "started"]);
        assert!(kinds.iter().any(|kind| kind == "step") && kinds.iter().any(|kind| kind == "preview"));
        assert_eq!(kinds.last().unwrap(), "finished");
    }
    // Its id is free again, for another job.
    worker.send(&json!({"type": "submit", "id": "0", "request": {"steps": 1, "seed": 99}}), &[]);
    assert_eq!(worker.until("finished", "0").0["pictures"][0]["seed"], 99);
    worker.end();
}

/// Kills a worker once its job's checkpoint after `step` steps is there, and gives that back.
fn killed_after(step: u64, request: &Value, payload: &[u8]) -> Option<Vec<u8>> {
    let mut worker = Worker::start(&[]);
    let options = json!({"checkpoint_every": 1});
    worker.send(&json!({"type": "submit", "id": "job", "request": request, "options": options}), payload);
    loop {
        let (header, bytes) = worker.next();
        let saved = header["type"] == "checkpoint" && header["done"] == step;
        if saved || header["type"] == "finished" {
            worker.kill();
            return saved.then_some(bytes);
        }
    }
}

#[test]
fn a_worker_that_is_killed_after_any_step_loses_no_job() {
    let mut second = Worker::start(&[]);
    for (case, (request, payload, whole)) in both().into_iter().enumerate() {
        let total = pipeline().start(&whole).unwrap().total() as u64;
        assert!(total >= 4, "{total} steps");
        let whole = pipeline().generate(&whole).unwrap();
        for step in 1..=total {
            // A checkpoint that the worker had no time to send is replaced by the next: then another worker tries.
            let saved = (0..100).find_map(|_| killed_after(step, &request, &payload)).unwrap();
            let id = format!("{case} from step {step}");
            second.send(&json!({"type": "resume", "id": id}), &saved);
            if step < total {
                let (next, _) = second.until("step", &id);
                assert!(next["done"].as_u64().unwrap() > step, "{id} began anew: {next}");
            }
            assert_same(&second.until("finished", &id), &whole);
        }
    }
    second.end();
}

#[test]
fn hostile_frames_are_answered_by_type_and_lose_nothing() {
    let mut worker = Worker::start(&["--max-frame", "100000"]);
    worker.send(&json!({"type": "submit", "id": "job", "request": {"steps": 40, "raw": true}}), &[]);
    assert_eq!(worker.answer()["type"], "accepted");
    let submit = |request: Value| json!({"type": "submit", "id": "bad", "request": request}).to_string();
    let bomb = {
        // A small file that names a picture of many gigabytes.
        let mut file = png(&RgbImage::new(1, 1));
        file[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
        file
    };
    let long_id = "x".repeat(257);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (0u32.to_le_bytes().to_vec(), "malformed"),
        ([3u32.to_le_bytes().as_slice(), b"abc"].concat(), "malformed"),
        ([8u32.to_le_bytes(), 5u32.to_le_bytes(), *b"abcd"].concat(), "malformed"),
        ([8u32.to_le_bytes(), u32::MAX.to_le_bytes(), *b"abcd"].concat(), "malformed"),
        ([200_000u32.to_le_bytes().as_slice(), &[7; 200_000]].concat(), "oversized"),
        (frame(b"", b""), "malformed"),
        (frame(b"{\"type\":\"submit\",\"id\":", b""), "malformed"),
        (frame(b"\xff\xfe", b"x"), "malformed"),
        (frame("[".repeat(50_000).as_bytes(), b""), "malformed"),
        (frame(br#"{"type":"explode","id":"job"}"#, b""), "malformed"),
        (frame(br#"{"type":"cancel","id":"job","really":true}"#, b""), "malformed"),
        (frame(submit(json!({"steps": -1})).as_bytes(), b""), "malformed"),
        (frame(submit(json!({"stepz": 1})).as_bytes(), b""), "malformed"),
        (frame(br#"{"type":"submit","id":"job"}"#, b""), "duplicate_id"),
        (frame(br#"{"type":"cancel","id":"nobody"}"#, b""), "unknown_id"),
        (frame(br#"{"type":"checkpoint","id":"nobody"}"#, b""), "unknown_id"),
        (frame(json!({"type": "submit", "id": long_id}).to_string().as_bytes(), b""), "bad_id"),
        (frame(br#"{"type":"resume","id":"bad"}"#, b"no checkpoint"), "invalid"),
        (frame(submit(json!({"sampler": "magic"})).as_bytes(), b""), "invalid"),
        (frame(submit(json!({"width": 7})).as_bytes(), b""), "invalid"),
        (frame(submit(json!({"strength": 0.5})).as_bytes(), b"no picture"), "invalid"),
        (frame(submit(json!({"strength": 0.5})).as_bytes(), &bomb), "invalid"),
        (frame(submit(json!({})).as_bytes(), b"a picture without a strength"), "invalid"),
    ];
    for (bytes, expected) in cases {
        worker.write(&bytes);
        let answer = worker.answer();
        let found = if answer["type"] == "rejected" { &answer["reason"] } else { &answer["code"] };
        assert_eq!(found, expected, "{answer} to {:?}", &bytes[..bytes.len().min(60)]);
    }
    let whole = Request { steps: Some(40), keep_raw: true, ..Request::default() };
    assert_same(&worker.until("finished", "job"), &pipeline().generate(&whole).unwrap());
    worker.write(&[50, 0, 0, 0, 9]);
    drop(worker.input.take());
    assert_eq!(worker.answer()["code"], "truncated");
    worker.end();
}

#[test]
fn a_drain_hands_out_what_runs_and_cancelled_jobs_say_so() {
    let (mut first, mut second) = (Worker::start(&[]), Worker::start(&[]));
    let request = json!({"prompt": "a yellow duck", "steps": 60, "width": 32, "height": 32, "raw": true});
    for id in ["kept", "dropped"] {
        first.send(&json!({"type": "submit", "id": id, "request": request}), &[]);
    }
    first.until("step", "dropped");
    first.send(&json!({"type": "cancel", "id": "dropped"}), &[]);
    let reason = loop {
        let (header, _) = first.next();
        if header["type"] == "failed" {
            break header;
        }
    };
    assert_eq!((&reason["id"], &reason["reason"]), (&json!("dropped"), &json!("cancelled")));
    first.send(&json!({"type": "checkpoint", "id": "kept"}), &[]);
    let (_, asked) = first.until("checkpoint", "kept");
    first.send(&json!({"type": "drain", "timeout_ms": 0}), &[]);
    let (_, suspended) = first.until("suspended", "kept");
    assert_eq!(first.next().0["type"], "drained");
    assert!(exit(&mut first.child).success());
    let whole = Request {
        steps: Some(60),
        width: Some(32),
        height: Some(32),
        keep_raw: true,
        ..Request::new("a yellow duck")
    };
    let whole = pipeline().generate(&whole).unwrap();
    for (id, saved) in [("asked", asked), ("suspended", suspended)] {
        second.send(&json!({"type": "resume", "id": id}), &saved);
        assert_same(&second.until("finished", id), &whole);
    }
    second.end();
}

#[test]
fn closed_output_ends_the_process_without_a_panic() {
    let mut child = spawn(&[]);
    let mut output = child.stdout.take().unwrap();
    assert_eq!(read_frame(&mut output).unwrap().0["type"], "ready");
    drop(output);
    let mut input = child.stdin.take().unwrap();
    input.write_all(&frame(br#"{"type":"submit","id":"job","request":{"steps":1000}}"#, b"")).unwrap();
    assert_eq!(exit(&mut child).code(), Some(1));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}
