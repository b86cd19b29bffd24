//! Frames and requests between two hosts: `docs/formats/serve.md`. Nothing here reads, writes or waits.

use crate::error::{Error, Reason, Result};
use crate::id::ChunkId;
use crate::placement::HolderId;
use crate::store::MAX_CHUNK;

/// What the client asks sshd to run for the protocol of this module.
pub const CHUNKS_COMMAND: &str = "gdo-chunks";
/// What the client asks sshd to run for git's own; the path is always this one.
pub const GIT_COMMAND: &str = "gdo-git-upload-pack '/'";

/// The only version there is.
pub const VERSION: u16 = 1;

/// Ids in one request to get, to ask for, and to prove.
pub const MAX_GET: usize = 1024;
/// See [`MAX_GET`].
pub const MAX_HAVE: usize = 4096;
/// See [`MAX_GET`].
pub const MAX_PROVE: usize = 256;
/// Requests that may be unanswered.
pub const MAX_OPEN: usize = 64;

/// Longest frame of a client, and of a server, in bytes without the length.
pub const MAX_REQUEST_FRAME: usize = 32 * MAX_HAVE + 64;
/// See [`MAX_REQUEST_FRAME`].
pub const MAX_ANSWER_FRAME: usize = MAX_CHUNK + 1024;

const MAGIC: &[u8; 10] = b"gdo-chunks";
const LENGTH: usize = 4;
const ID: usize = 32;
const MAX_TEXT: usize = 1024;

const HELLO: u8 = 1;
const GET: u8 = 2;
const HAVE: u8 = 3;
const PROVE: u8 = 4;
const PROMISE: u8 = 5;
const ANSWER: u8 = 128;
const CHUNK: u8 = ANSWER | GET;
const ABSENT: u8 = 131;
const HAS: u8 = 132;
const PROOF: u8 = 133;
const FAILURE: u8 = 134;
const PROMISES: u8 = 135;
const WELCOME: u8 = ANSWER | HELLO;

/// A frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// The first one: the versions that it knows.
    Hello {
        /// The lowest.
        lowest: u16,
        /// The highest.
        highest: u16,
    },
    /// Any other one.
    Request(Request),
}

/// Something that a client wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub number: u32,
    /// What it wants.
    pub want: Want,
    /// Of which chunks; at least one.
    pub ids: Vec<ChunkId>,
}

/// What a client wants of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The chunks.
    Get,
    /// Whether they are there.
    Have,
    /// Proof that they are there, under this nonce.
    Prove([u8; 32]),
    /// The same, and until when they are promised.
    Promise([u8; 32]),
}

impl Want {
    /// Returns how many chunks one request may be about.
    pub fn most(self) -> usize {
        match self {
            Self::Get => MAX_GET,
            Self::Have => MAX_HAVE,
            Self::Prove(_) | Self::Promise(_) => MAX_PROVE,
        }
    }
}

/// A frame of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// The first one: the version that counts.
    Hello {
        /// The version.
        version: u16,
    },
    /// A chunk that was asked for.
    Chunk {
        /// The request.
        number: u32,
        /// Which of its ids.
        position: u16,
        /// The record as it lies in a chunk pack; not verified.
        record: Vec<u8>,
    },
    /// A chunk that is not there.
    Absent {
        /// The request.
        number: u32,
        /// Which of its ids.
        position: u16,
    },
    /// Which chunks are there.
    Have {
        /// The request.
        number: u32,
        /// A bit for each id.
        bits: Vec<u8>,
    },
    /// Proof that they are.
    Proof {
        /// The request.
        number: u32,
        /// For each id, what [`proof`] returns, or zeros.
        hashes: Vec<[u8; 32]>,
    },
    /// Until when they are promised, and proof that they are there.
    Promises {
        /// The request.
        number: u32,
        /// Who promises; [`HolderId::NONE`] if this host is no holder.
        holder: HolderId,
        /// What its clock says, in seconds since 1970.
        now: u64,
        /// For each id: until when, in seconds since 1970, and what [`proof`] returns; zeros if it is not there, or not promised.
        promises: Vec<(u64, [u8; 32])>,
    },
    /// Why a request, or the connection if the number is 0, failed.
    Failure {
        /// The request.
        number: u32,
        /// The reason, for a person.
        text: String,
    },
}

/// Returns an error about a peer that does not keep to the protocol.
pub fn violation(what: impl Into<String>) -> Error {
    Error::refused(Reason::Proto, what)
}

/// Returns what proves that a chunk was read after the nonce was known.
pub fn proof(nonce: &[u8; 32], plain: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(nonce, plain).as_bytes()
}

/// Cuts what comes into frames; holds one frame, and what came with its end.
#[derive(Debug)]
pub struct Splitter {
    max_frame: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the frames end that were taken.
    start: usize,
}

impl Splitter {
    /// Returns one that takes no frame longer than `max_frame`.
    pub fn new(max_frame: usize) -> Self {
        Self { max_frame, buffer: Vec::new(), start: 0 }
    }

    /// Takes bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.start));
        self.buffer.extend_from_slice(bytes);
    }

    /// Says whether a frame began that is not complete.
    pub fn is_within_frame(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Returns the next complete frame: its kind and body.
    pub fn next_frame(&mut self) -> Result<Option<(u8, &[u8])>> {
        let waiting = &self.buffer[self.start..];
        let Some(length) = waiting.first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > self.max_frame {
            return Err(violation(format!("a frame of {length} bytes came, possible are 1 to {}", self.max_frame)));
        }
        let Some(frame) = waiting[LENGTH..].get(..length) else { return Ok(None) };
        self.start += LENGTH + length;
        Ok(Some((frame[0], &frame[1..])))
    }
}

impl FromClient {
    /// Encodes the frame, with its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { lowest, highest } => frame(HELLO, &[MAGIC, &lowest.to_le_bytes(), &highest.to_le_bytes()]),
            Self::Request(Request { number, want, ids }) => {
                let (kind, nonce): (u8, &[u8]) = match want {
                    Want::Get => (GET, &[]),
                    Want::Have => (HAVE, &[]),
                    Want::Prove(nonce) => (PROVE, nonce),
                    Want::Promise(nonce) => (PROMISE, nonce),
                };
                let ids: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
                frame(kind, &[&number.to_le_bytes(), nonce, &ids])
            }
        }
    }

    /// Decodes a frame; anything unexpected is refused.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self> {
        let mut rest = Rest(body);
        let frame = match kind {
            HELLO => {
                rest.magic()?;
                Self::Hello { lowest: rest.u16()?, highest: rest.u16()? }
            }
            GET | HAVE | PROVE | PROMISE => {
                let number = rest.u32()?;
                let want = match kind {
                    GET => Want::Get,
                    HAVE => Want::Have,
                    PROVE => Want::Prove(rest.array()?),
                    _ => Want::Promise(rest.array()?),
                };
                let ids = rest.hashes(want.most())?.into_iter().map(ChunkId::from_bytes).collect();
                Self::Request(Request { number, want, ids })
            }
            other => return Err(violation(format!("an unknown frame of kind {other} came"))),
        };
        rest.end()?;
        Ok(frame)
    }
}

impl FromServer {
    /// Encodes the frame, with its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { version } => frame(WELCOME, &[MAGIC, &version.to_le_bytes()]),
            Self::Chunk { number, position, record } => frame(CHUNK, &[&number.to_le_bytes(), &position.to_le_bytes(), record]),
            Self::Absent { number, position } => frame(ABSENT, &[&number.to_le_bytes(), &position.to_le_bytes()]),
            Self::Have { number, bits } => frame(HAS, &[&number.to_le_bytes(), bits]),
            Self::Proof { number, hashes } => frame(PROOF, &[&number.to_le_bytes(), &hashes.concat()]),
            Self::Promises { number, holder, now, promises } => {
                let promises: Vec<u8> =
                    promises.iter().flat_map(|(until, proof)| [&until.to_le_bytes()[..], proof].concat()).collect();
                frame(PROMISES, &[&number.to_le_bytes(), holder.as_bytes(), &now.to_le_bytes(), &promises])
            }
            Self::Failure { number, text } => {
                let end = (0..=text.len().min(MAX_TEXT)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
                frame(FAILURE, &[&number.to_le_bytes(), &text.as_bytes()[..end]])
            }
        }
    }

    /// Decodes a frame; anything unexpected is refused.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self> {
        let mut rest = Rest(body);
        let frame = match kind {
            WELCOME => {
                rest.magic()?;
                Self::Hello { version: rest.u16()? }
            }
            CHUNK => Self::Chunk { number: rest.u32()?, position: rest.u16()?, record: rest.all().to_vec() },
            ABSENT => Self::Absent { number: rest.u32()?, position: rest.u16()? },
            HAS => Self::Have { number: rest.u32()?, bits: rest.all().to_vec() },
            PROOF => Self::Proof { number: rest.u32()?, hashes: rest.hashes(MAX_PROVE)? },
            PROMISES => {
                let (number, holder, now) = (rest.u32()?, HolderId::from_bytes(rest.array()?), rest.u64()?);
                Self::Promises { number, holder, now, promises: rest.promises()? }
            }
            FAILURE => {
                let (number, text) = (rest.u32()?, rest.all());
                let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= MAX_TEXT);
                let text = text.ok_or_else(|| violation("a failure came without a readable text"))?;
                Self::Failure { number, text: text.to_owned() }
            }
            other => return Err(violation(format!("an unknown frame of kind {other} came"))),
        };
        rest.end()?;
        Ok(frame)
    }
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(LENGTH + length);
    bytes.extend(u32::try_from(length).expect("BUG: frames are short").to_le_bytes());
    bytes.push(kind);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// What is left of a body.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(|| violation("a frame came that is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn magic(&mut self) -> Result<()> {
        match self.array()? {
            found if &found == MAGIC => Ok(()),
            _ => Err(violation("a greeting of another protocol came")),
        }
    }

    /// Takes all that is left, which must be `1..=most` hashes.
    fn hashes(&mut self, most: usize) -> Result<Vec<[u8; 32]>> {
        let (hashes, rest) = self.all().as_chunks::<ID>();
        match rest.is_empty() && (1..=most).contains(&hashes.len()) {
            true => Ok(hashes.to_vec()),
            false => Err(violation(format!("a frame came whose list is not of 1 to {most} hashes"))),
        }
    }

    /// Takes all that is left, which must be promises, with proofs, of chunks that one request can be about.
    fn promises(&mut self) -> Result<Vec<(u64, [u8; 32])>> {
        let (promises, rest) = self.all().as_chunks::<{ 8 + ID }>();
        if !rest.is_empty() || !(1..=MAX_PROVE).contains(&promises.len()) {
            return Err(violation(format!("a frame came whose list is not of 1 to {MAX_PROVE} promises")));
        }
        let decode = |bytes: &[u8; 8 + ID]| {
            let (until, proof) = bytes.split_first_chunk().expect("BUG: it has 40 bytes");
            (u64::from_le_bytes(*until), proof.try_into().expect("BUG: it has 40 bytes"))
        };
        Ok(promises.iter().map(decode).collect())
    }

    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(violation("a frame came that is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: usize) -> Vec<ChunkId> {
        (0..n).map(|i| ChunkId::of(&i.to_le_bytes())).collect()
    }

    fn client_frames() -> Vec<FromClient> {
        let request = |want, n| FromClient::Request(Request { number: 7, want, ids: ids(n) });
        vec![
            FromClient::Hello { lowest: 1, highest: 3 },
            request(Want::Get, 1),
            request(Want::Get, MAX_GET),
            request(Want::Have, MAX_HAVE),
            request(Want::Prove([9; 32]), MAX_PROVE),
            request(Want::Promise([9; 32]), MAX_PROVE),
        ]
    }

    fn server_frames() -> Vec<FromServer> {
        vec![
            FromServer::Hello { version: 1 },
            FromServer::Chunk { number: 1, position: 2, record: vec![3; 1000] },
            FromServer::Absent { number: u32::MAX, position: u16::MAX },
            FromServer::Have { number: 1, bits: vec![1; 512] },
            FromServer::Proof { number: 1, hashes: vec![[2; 32]; MAX_PROVE] },
            FromServer::Promises { number: 1, holder: HolderId::NONE, now: 5, promises: vec![(3, [2; 32]); MAX_PROVE] },
            FromServer::Failure { number: 0, text: "grün".into() },
        ]
    }

    #[test]
    fn what_is_encoded_is_decoded_however_it_comes_in() {
        let bytes: Vec<u8> = client_frames().iter().flat_map(FromClient::encode).collect();
        for step in [1, 7, 4096, bytes.len()] {
            let mut splitter = Splitter::new(MAX_REQUEST_FRAME);
            let mut frames = Vec::new();
            for part in bytes.chunks(step) {
                splitter.push(part);
                while let Some((kind, body)) = splitter.next_frame().unwrap() {
                    frames.push(FromClient::decode(kind, body).unwrap());
                }
            }
            assert_eq!(frames, client_frames(), "{step} bytes at a time");
            assert!(!splitter.is_within_frame());
        }
        for frame in server_frames() {
            let bytes = frame.encode();
            assert_eq!(FromServer::decode(bytes[LENGTH], &bytes[LENGTH + 1..]).unwrap(), frame);
        }
    }

    #[test]
    fn the_longest_frames_are_as_long_as_the_page_says() {
        let longest = client_frames().iter().map(|frame| frame.encode().len()).max().unwrap();
        assert!(longest <= LENGTH + MAX_REQUEST_FRAME);
        assert_eq!(MAX_REQUEST_FRAME, (128 << 10) + 64);
        assert_eq!(MAX_ANSWER_FRAME, (16 << 20) + 1024);
    }

    #[test]
    fn the_page_shows_what_is_said() {
        let page = include_str!("../../../docs/formats/serve.md");
        let shown = page.split("```\n").find(|block| block.starts_with("client ")).unwrap();
        let ids = [&b""[..], b"a"].map(ChunkId::of).to_vec();
        let said = [
            ("client", FromClient::Hello { lowest: 1, highest: 1 }.encode()),
            ("server", FromServer::Hello { version: 1 }.encode()),
            ("client", FromClient::Request(Request { number: 1, want: Want::Have, ids }).encode()),
            ("server", FromServer::Have { number: 1, bits: vec![2] }.encode()),
        ];
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), said.len());
        for ((who, bytes), line) in said.iter().zip(lines) {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let (shown_who, shown_bytes) = line.split_once(' ').unwrap();
            assert_eq!((*who, hex), (shown_who, shown_bytes.replace(' ', "")));
        }
    }

    #[test]
    fn a_frame_of_another_length_than_its_kind_has_is_refused() {
        for frame in client_frames() {
            let bytes = frame.encode();
            for body in [&bytes[LENGTH + 1..bytes.len() - 1], &[&bytes[LENGTH + 1..], b"x"].concat()] {
                assert_eq!(FromClient::decode(bytes[LENGTH], body).unwrap_err().reason(), Some(Reason::Proto), "{frame:?}");
            }
        }
        let too_many = |want, n| FromClient::Request(Request { number: 0, want, ids: ids(n) }).encode();
        let many = [
            too_many(Want::Get, MAX_GET + 1),
            too_many(Want::Have, MAX_HAVE + 1),
            too_many(Want::Prove([0; 32]), MAX_PROVE + 1),
            too_many(Want::Promise([0; 32]), MAX_PROVE + 1),
            too_many(Want::Get, 0),
            frame(HELLO, &[b"gdo-chunk!", &[1, 0, 1, 0]]),
            frame(99, &[]),
            frame(CHUNK, &[&[0; 6]]),
        ];
        for bytes in many {
            FromClient::decode(bytes[LENGTH], &bytes[LENGTH + 1..]).unwrap_err();
        }
        for (kind, body) in
            [(CHUNK, &[0; 5][..]), (FAILURE, b"\0\0\0\0\xff"), (FAILURE, &[b'a'; 2000]), (PROOF, &[0; 4]), (GET, &[0; 36])]
        {
            FromServer::decode(kind, body).unwrap_err();
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_kept_for_it() {
        for length in [0, MAX_REQUEST_FRAME as u32 + 1, 1 << 31, u32::MAX] {
            let mut splitter = Splitter::new(MAX_REQUEST_FRAME);
            splitter.push(&length.to_le_bytes());
            splitter.next_frame().unwrap_err();
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let bytes = FromServer::Failure { number: 1, text: "ä".repeat(1000) }.encode();
        let FromServer::Failure { text, .. } = FromServer::decode(bytes[LENGTH], &bytes[LENGTH + 1..]).unwrap() else { panic!() };
        assert_eq!(text.len(), 1024);
    }
}
