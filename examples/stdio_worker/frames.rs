//! Frames on a byte stream: read within bounds, written whole.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError, mpsc};

use serde_json::{Value, json};

use crate::Stop;

/// The longest header that is read. Room for two prompts of the greatest length, every character of them
/// escaped.
const MAX_HEADER: u64 = 16 << 20;

/// One frame's parts.
pub(crate) struct Frame {
    pub(crate) header: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// What came next.
pub(crate) enum Incoming {
    Frame(Frame),
    /// No frame, but what follows can be read, if anything does.
    Refused {
        code: &'static str,
        message: String,
    },
    End,
}

/// Reads one frame; skips it where it is longer than `max_frame` or contradicts itself. Memory grows with
/// what arrives, not with what a length says.
pub(crate) fn read(input: &mut impl Read, max_frame: u32) -> io::Result<Incoming> {
    let mut length = Vec::new();
    if input.by_ref().take(4).read_to_end(&mut length)? == 0 {
        return Ok(Incoming::End);
    }
    let Ok(length) = <[u8; 4]>::try_from(length) else {
        return Ok(truncated("within a length"));
    };
    let length = u32::from_le_bytes(length);
    if length > max_frame {
        return skip(
            input,
            length.into(),
            "oversized",
            format!("frame: at most {max_frame} bytes, found {length}"),
        );
    }
    let Some(rest) = length.checked_sub(4) else {
        return skip(input, length.into(), "malformed", format!("frame: at least 4 bytes, found {length}"));
    };
    let Some(header_length) = exactly(input, 4)?.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else {
        return Ok(truncated("within a header's length"));
    };
    let header_length = u32::from_le_bytes(header_length);
    let Some(payload_length) = rest.checked_sub(header_length) else {
        let message = format!("header: at most the frame's {rest} bytes, found {header_length}");
        return skip(input, rest.into(), "malformed", message);
    };
    if u64::from(header_length) > MAX_HEADER {
        let message = format!("header: at most {MAX_HEADER} bytes, found {header_length}");
        return skip(input, rest.into(), "oversized", message);
    }
    let header = exactly(input, header_length.into())?;
    let payload = exactly(input, payload_length.into())?;
    Ok(match header.zip(payload) {
        Some((header, payload)) => Incoming::Frame(Frame { header, payload }),
        None => truncated("within a frame"),
    })
}

/// So many bytes, or `None` where the stream ends before.
fn exactly(input: &mut impl Read, count: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let found = input.by_ref().take(count).read_to_end(&mut bytes)?;
    Ok((found as u64 == count).then_some(bytes))
}

fn truncated(place: &str) -> Incoming {
    Incoming::Refused { code: "truncated", message: format!("the input ended {place}") }
}

fn skip(input: &mut impl Read, count: u64, code: &'static str, message: String) -> io::Result<Incoming> {
    io::copy(&mut input.by_ref().take(count), &mut io::sink())?;
    Ok(Incoming::Refused { code, message })
}

/// Where frames go, from any thread. Once a write has failed, nothing more is written.
pub(crate) struct Output {
    stdout: Mutex<Option<io::Stdout>>,
    stop: mpsc::Sender<Stop>,
}

impl Output {
    pub(crate) fn new(stop: mpsc::Sender<Stop>) -> Self {
        Self { stdout: Mutex::new(Some(io::stdout())), stop }
    }

    /// Writes a message with the concatenated parts as its payload.
    pub(crate) fn send(&self, header: &Value, payload: &[Vec<u8>]) {
        let frame = encode(header, payload).or_else(|| {
            let id = header.get("id");
            let message = "the result is longer than a frame can be";
            encode(&json!({"type": "failed", "id": id, "reason": "oversized", "message": message}), &[])
        });
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(frame), Some(open)) = (frame, stdout.as_mut()) else {
            return;
        };
        if open.write_all(&frame).and_then(|()| open.flush()).is_err() {
            *stdout = None;
            // The receiver is the main thread: without it, the process is ending already.
            let _ = self.stop.send(Stop::Unheard);
        }
    }

    pub(crate) fn error(&self, id: Option<&str>, code: &str, message: &str) {
        self.send(&json!({"type": "error", "id": id, "code": code, "message": message}), &[]);
    }
}

fn encode(header: &Value, payload: &[Vec<u8>]) -> Option<Vec<u8>> {
    let header = header.to_string().into_bytes();
    let length = 4 + header.len() + payload.iter().map(Vec::len).sum::<usize>();
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend(u32::try_from(length).ok()?.to_le_bytes());
    frame.extend(u32::try_from(header.len()).ok()?.to_le_bytes());
    frame.extend(header);
    payload.iter().for_each(|part| frame.extend(part));
    Some(frame)
}
