//! Reading deflated content out of files: what is short at once, all else block by block, with no more memory than content really comes out.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// A file open for reading at any position, by any thread.
#[derive(Debug)]
pub(super) struct Source {
    id: SourceId,
    path: PathBuf,
    file: File,
    length: u64,
}

/// Tells one opened content from every other, also from a later one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceId(u64);

impl SourceId {
    /// Returns an id that no other content of this process has.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Source {
    /// Opens `path`; an error of the kind `NotFound` means that it is not there.
    pub fn open(path: &Path, id: SourceId) -> Result<Self> {
        let what = || format!("cannot open '{}'", path.display());
        let file = durable::open(path).context(what)?;
        let length = file.metadata().context(what)?.len();
        Ok(Self { id, path: path.to_owned(), file, length })
    }

    /// Returns the length of the file when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from position `at`.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(Kind::Corrupt, format!("'{}' is cut short", self.path.display())),
            _ => {
                let kind = durable::is_rot(&error).then_some(Kind::Corrupt);
                let error = Error::from(error);
                let kind = kind.unwrap_or(error.kind());
                error.with_kind(kind).wrap(format!("cannot read '{}' at byte {at}", self.path.display()))
            }
        })
    }
}

/// The files that are open, the most recently used first; bounded, as a process may have only so many.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<VecDeque<Arc<Source>>>);

impl OpenFiles {
    /// Returns the open file `id`, which is opened at `path` and passed to `check` if it is not among them.
    pub fn get(&self, id: SourceId, path: &Path, check: impl FnOnce(&Source) -> Result<()>) -> Result<Arc<Source>> {
        let lock = || self.0.lock().expect("BUG: a thread panicked while it held the open files");
        let mut open = lock();
        let source = match open.iter().position(|source| source.id == id) {
            Some(0) => return Ok(Arc::clone(&open[0])),
            Some(at) => open.remove(at).expect("BUG: it was just found"),
            None => {
                drop(open);
                let source = Source::open(path, id)?;
                check(&source)?;
                open = lock();
                Arc::new(source)
            }
        };
        open.push_front(Arc::clone(&source));
        open.truncate(MAX_OPEN);
        Ok(source)
    }
}

const MAX_OPEN: usize = 64;

/// What one thread needs to read: blocks of files and the state of inflating. Made once, used for many objects.
pub(super) struct Reader {
    blocks: [Block; 2],
    /// For what lies in memory whole.
    whole: Decompressor,
    /// For what is long, or of which only the start is wanted.
    stream: Decompress,
    /// The file last used, so that most reads need not look for it among the open ones.
    last: Option<Arc<Source>>,
}

impl Reader {
    pub fn new() -> Self {
        Self {
            blocks: [Block::default(), Block::default()],
            whole: Decompressor::new(),
            stream: Decompress::new(true),
            last: None,
        }
    }

    /// Returns the file `id` as [`OpenFiles::get`] does.
    pub fn source(
        &mut self,
        files: &OpenFiles,
        id: SourceId,
        path: &Path,
        check: impl FnOnce(&Source) -> Result<()>,
    ) -> Result<Arc<Source>> {
        match &self.last {
            Some(last) if last.id == id => Ok(Arc::clone(last)),
            _ => {
                let source = files.get(id, path, check)?;
                self.last = Some(Arc::clone(&source));
                Ok(source)
            }
        }
    }

    /// Returns `count` bytes at `at`, or all up to the end if there are fewer.
    pub fn peek(&mut self, source: &Source, at: u64, count: usize) -> Result<&[u8]> {
        let bytes = self.block(source, at).bytes(source, at, count)?;
        Ok(&bytes[..count.min(bytes.len())])
    }

    /// Inflates what starts at `at` and must give exactly `size` bytes.
    pub fn inflate(&mut self, source: &Source, at: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_SIZE {
            return Err(Error::new(Kind::Unsupported, format!("an object of {size} bytes is too large; the most is {MAX_SIZE}")));
        }
        if let Some(content) = self.inflate_at_once(source, at, size)? {
            return Ok(content);
        }
        match self.inflate_up_to(source, at, size + 1)? {
            (content, true) if content.len() as u64 == size => Ok(content),
            _ => Err(wrong_size()),
        }
    }

    /// Returns how many bytes the deflated content takes that starts at `at` and must give exactly `size` bytes, which are not kept.
    pub fn deflated_length(&mut self, source: &Source, at: u64, size: u64) -> Result<u64> {
        let block = pick(&mut self.blocks, source, at);
        self.stream.reset(true);
        let mut content = vec![0; 64 << 10];
        loop {
            let before = (self.stream.total_in(), self.stream.total_out());
            let input = block.bytes(source, at + self.stream.total_in(), 1)?;
            let status = self.stream.decompress(input, &mut content, FlushDecompress::None);
            match status.map_err(|_| Error::new(Kind::Corrupt, "the deflated content is damaged"))? {
                Status::StreamEnd if self.stream.total_out() == size => return Ok(self.stream.total_in()),
                Status::StreamEnd => return Err(wrong_size()),
                _ if self.stream.total_out() > size => return Err(wrong_size()),
                _ if before == (self.stream.total_in(), self.stream.total_out()) => {
                    return Err(Error::new(Kind::Corrupt, "the deflated content is cut short"));
                }
                _ => (),
            }
        }
    }

    /// Inflates at most `count` of the bytes that start at `at`.
    pub fn inflate_start(&mut self, source: &Source, at: u64, count: usize) -> Result<Vec<u8>> {
        let (mut content, _) = self.inflate_up_to(source, at, count as u64)?;
        content.truncate(count);
        Ok(content)
    }

    /// Inflates a short content that gives exactly `size` bytes; says nothing of one that is long or damaged.
    fn inflate_at_once(&mut self, source: &Source, at: u64, size: u64) -> Result<Option<Vec<u8>>> {
        if size > AT_ONCE {
            return Ok(None);
        }
        // No usual writer makes more of it than stored blocks are. What is longer comes by the stream.
        let input = pick(&mut self.blocks, source, at).bytes(source, at, (size + size / 256 + 64) as usize)?;
        inflate_whole(&mut self.whole, input, size)
    }

    /// Inflates until the content ends, which the second value says, or there are `limit` bytes or a few more.
    fn inflate_up_to(&mut self, source: &Source, at: u64, limit: u64) -> Result<(Vec<u8>, bool)> {
        let block = pick(&mut self.blocks, source, at);
        self.stream.reset(true);
        let mut content = Vec::new();
        // A size is a claim until the bytes are here: memory grows with them.
        reserve(&mut content, limit.min(FIRST_SIZE))?;
        loop {
            let input = block.bytes(source, at + self.stream.total_in(), 1)?;
            let before = (self.stream.total_in(), content.len());
            let status = self.stream.decompress_vec(input, &mut content, FlushDecompress::Finish);
            match status.map_err(|_| Error::new(Kind::Corrupt, "the deflated content is damaged"))? {
                Status::StreamEnd => return Ok((content, true)),
                _ if content.len() as u64 >= limit => return Ok((content, false)),
                _ if content.len() == content.capacity() => {
                    let more = (limit - content.len() as u64).min(content.len() as u64);
                    reserve(&mut content, more)?;
                }
                _ if before == (self.stream.total_in(), content.len()) => {
                    return Err(Error::new(Kind::Corrupt, "the deflated content is cut short"));
                }
                _ => (),
            }
        }
    }

    fn block(&mut self, source: &Source, at: u64) -> &mut Block {
        pick(&mut self.blocks, source, at)
    }
}

fn wrong_size() -> Error {
    Error::new(Kind::Corrupt, "the content has another size than its header says")
}

/// Inflates what `input` begins with and what gives exactly `size` bytes; says nothing of what is damaged.
pub(super) fn inflate_whole(whole: &mut Decompressor, input: &[u8], size: u64) -> Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    reserve(&mut content, size)?;
    content.resize(size as usize, 0);
    Ok(whole.zlib_decompress(input, &mut content).is_ok_and(|length| length == content.len()).then_some(content))
}

/// Appends room for exactly `more` bytes, or fails where the process would be ended.
pub(super) fn reserve(bytes: &mut Vec<u8>, more: u64) -> Result<()> {
    let reserved = usize::try_from(more).ok().filter(|more| *more as u64 <= MAX_SIZE + 1);
    reserved
        .and_then(|more| bytes.try_reserve_exact(more).ok())
        .ok_or_else(|| Error::new(Kind::Io, format!("not enough memory for an object of {} bytes", bytes.len() as u64 + more)))
}

/// No object of ours comes near it; one that claims more is not read.
pub(super) const MAX_SIZE: u64 = 2 << 30;

const FIRST_SIZE: u64 = 1 << 20;

/// What claims to be longer is read as it comes: for less, memory is taken on its word.
const AT_ONCE: u64 = 512 << 10;

/// Some consecutive bytes of a file.
#[derive(Default)]
struct Block {
    id: Option<SourceId>,
    start: u64,
    buffer: Vec<u8>,
    length: usize,
    /// How much the next read takes: it grows as long as the reads go forward.
    ahead: usize,
}

/// Chooses the block that holds `at` or would by reading on; else takes the second.
///
/// So reading along a pack keeps its block while the bases of deltas are fetched from anywhere.
fn pick<'a>(blocks: &'a mut [Block; 2], source: &Source, at: u64) -> &'a mut Block {
    let [first, second] = blocks;
    if second.is_near(source, at) && !first.is_near(source, at) {
        std::mem::swap(first, second);
        return first;
    }
    if first.is_near(source, at) { first } else { second }
}

impl Block {
    const FIRST: usize = 4 << 10;
    const MAX: usize = 128 << 10;

    fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    fn is_near(&self, source: &Source, at: u64) -> bool {
        self.id == Some(source.id) && self.start <= at && at <= self.end() + Self::MAX as u64
    }

    /// Returns at least `count` bytes at `at`, or all up to the end of the file.
    fn bytes(&mut self, source: &Source, at: u64, count: usize) -> Result<&[u8]> {
        let left = usize::try_from(source.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let is_held = self.id == Some(source.id) && self.start <= at && at + count.min(left) as u64 <= self.end();
        if !is_held && left > 0 {
            self.load(source, at, count.min(left), left)?;
        }
        let skip = at.saturating_sub(self.start).min(self.length as u64) as usize;
        Ok(if left == 0 { &[] } else { &self.buffer[skip..self.length] })
    }

    fn load(&mut self, source: &Source, at: u64, count: usize, left: usize) -> Result<()> {
        self.ahead = if self.is_near(source, at) { (self.ahead * 2).min(Self::MAX) } else { Self::FIRST };
        let length = self.ahead.max(count).min(left);
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        // Whatever happens, what is half read is not taken for the old content.
        self.id = None;
        source.read(at, &mut self.buffer[..length])?;
        (self.id, self.start, self.length) = (Some(source.id), at, length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Inflates `bytes`, which lie in a file with others behind them and claim to give `size`.
    fn inflate(bytes: &[u8], size: u64) -> Result<Vec<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(&[bytes, b"what comes next"].concat()).unwrap();
        let source = Source::open(file.path(), SourceId::new()).unwrap();
        Reader::new().inflate(&source, 0, size)
    }

    #[test]
    fn what_the_disk_does_not_give_back_is_damaged_and_nothing_else_is() {
        // Nothing is mapped at the start of a process, and reading there is an input/output error.
        let rotten = Source::open(Path::new("/proc/self/mem"), SourceId::new()).unwrap();
        let error = rotten.read(0, &mut [0; 8]).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (Kind::Corrupt, "cannot read '/proc/self/mem' at byte 0".to_owned()));
        assert!(format!("{error:#}").ends_with(": input/output error"), "{error:#}");
        // A position that no file has.
        let error = rotten.read(u64::MAX, &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error:#}");
    }

    #[test]
    fn a_rotten_bit_or_a_wrong_size_of_a_short_content_is_noticed() {
        let content: Vec<u8> = (0..400_u32).flat_map(|n| format!("{} ", n * n % 97).into_bytes()).collect();
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(&content).unwrap();
        let sound = out.finish().unwrap();
        let size = content.len() as u64;
        assert_eq!(inflate(&sound, size).unwrap(), content);
        for bit in 0..8 * sound.len() {
            let mut rotten = sound.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            // The bits that fill the last byte before the checksum mean nothing.
            assert!(
                inflate(&rotten, size).map_or_else(|error| error.kind() == Kind::Corrupt, |read| read == content),
                "bit {bit}"
            );
        }
        for claim in [0, size - 1, size + 1, 2 * size, 100_000] {
            assert!(inflate(&sound, claim).is_err_and(|error| error.kind() == Kind::Corrupt), "{claim}");
        }
        for cut in [0, 1, 2, sound.len() / 2, sound.len() - 1] {
            assert!(inflate(&sound[..cut], size).is_err(), "{cut}");
        }
    }

    #[test]
    fn the_length_of_what_is_deflated_is_known_without_keeping_it() {
        for size in [0, 1, 64 << 10, (64 << 10) + 1, 9 << 20] {
            let content: Vec<u8> = (0..size).map(|at| (at * at % 251) as u8).collect();
            let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&content).unwrap();
            let sound = out.finish().unwrap();
            let length = |bytes: &[u8], size: u64| {
                let file = tempfile::NamedTempFile::new().unwrap();
                file.as_file().write_all(bytes).unwrap();
                let source = Source::open(file.path(), SourceId::new()).unwrap();
                Reader::new().deflated_length(&source, 0, size)
            };
            assert_eq!(length(&[&sound, &b"what comes next"[..]].concat(), size).unwrap(), sound.len() as u64);
            length(&sound, size + 1).unwrap_err();
            length(&sound[..sound.len() - 1], size).unwrap_err();
            if size > 0 {
                length(&sound, size - 1).unwrap_err();
            }
        }
    }
}
