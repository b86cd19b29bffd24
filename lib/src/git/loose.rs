//! Loose objects: each deflated in a file of its own, named by the object.

use std::path::{Path, PathBuf};

use super::inflate::{Reader, Source, SourceId};
use super::packed::Claim;
use super::{ObjectKind, Oid};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// The loose objects of one object directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loose {
    dir: PathBuf,
    /// Which of the directories `00` to `ff` there are, so that most misses cost no call of the system.
    fans: Vec<bool>,
}

impl Loose {
    /// Looks at the object directory `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut fans = vec![false; 256];
        for listed in durable::list(dir)? {
            let name = listed.path.file_name().and_then(|name| name.to_str());
            if let Some(fan) = name.filter(|name| name.len() == 2).and_then(|name| u8::from_str_radix(name, 16).ok()) {
                fans[usize::from(fan)] = true;
            }
        }
        Ok(Self { dir: dir.to_owned(), fans })
    }

    /// Says whether `oid` is here.
    pub fn contains(&self, oid: &Oid) -> bool {
        self.path(oid).is_some_and(|path| durable::is_file(&path))
    }

    /// Returns the kind and the content of `oid`, or `None` if it is not here.
    pub fn read(&self, oid: &Oid, reader: &mut Reader) -> Result<Option<(ObjectKind, Vec<u8>)>> {
        self.read_claiming(oid, reader, &mut |_| ())
    }

    /// Does so, and tells `claim` the size of the object before that is in memory.
    pub fn read_claiming(&self, oid: &Oid, reader: &mut Reader, claim: Claim<'_>) -> Result<Option<(ObjectKind, Vec<u8>)>> {
        self.with_source(oid, |source| {
            let header = read_header(source, reader)?;
            claim(header.size);
            let mut content = reader.inflate(source, 0, header.length as u64 + header.size)?;
            content.drain(..header.length);
            Ok((header.kind, content))
        })
    }

    /// Returns the kind and the size of `oid`, or `None` if it is not here.
    pub fn header(&self, oid: &Oid, reader: &mut Reader) -> Result<Option<(ObjectKind, u64)>> {
        self.with_source(oid, |source| read_header(source, reader).map(|header| (header.kind, header.size)))
    }

    fn with_source<T>(&self, oid: &Oid, work: impl FnOnce(&Source) -> Result<T>) -> Result<Option<T>> {
        let Some(path) = self.path(oid) else { return Ok(None) };
        match Source::open(&path, SourceId::new()) {
            Ok(source) => work(&source).context(|| format!("loose object '{}' is damaged", path.display())).map(Some),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, oid: &Oid) -> Option<PathBuf> {
        let hex = oid.to_string();
        self.fans[usize::from(oid.as_slice()[0])].then(|| self.dir.join(&hex[..2]).join(&hex[2..]))
    }
}

/// What stands before the content.
struct Header {
    kind: ObjectKind,
    size: u64,
    /// Bytes of the header itself.
    length: usize,
}

fn read_header(source: &Source, reader: &mut Reader) -> Result<Header> {
    let start = reader.inflate_start(source, 0, MAX_HEADER)?;
    decode_header(&start).ok_or_else(|| Error::new(Kind::Corrupt, "it has no header that git writes"))
}

/// Decodes `kind size\0`.
fn decode_header(bytes: &[u8]) -> Option<Header> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (kind, size) = std::str::from_utf8(&bytes[..end]).ok()?.split_once(' ')?;
    let is_number = size.bytes().all(|byte| byte.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
    let size = size.parse().ok().filter(|size| is_number && *size < u64::MAX - MAX_HEADER as u64)?;
    Some(Header { kind: ObjectKind::from_name(kind)?, size, length: end + 1 })
}

/// `commit`, a space, twenty digits and the end.
const MAX_HEADER: usize = 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_kind_and_a_size() {
        let decode = |bytes: &[u8]| decode_header(bytes).map(|header| (header.kind, header.size, header.length));
        assert_eq!(decode(b"blob 12\0hello"), Some((ObjectKind::Blob, 12, 8)));
        assert_eq!(decode(b"commit 0\0"), Some((ObjectKind::Commit, 0, 9)));
        for bad in [
            "",
            "blob 012\0",
            "blob 00\0",
            "blob 12",
            "blob\0",
            "blob \0",
            "blob +1\0",
            "blob -1\0",
            "blub 1\0",
            "blob 1 \0",
            "blob 18446744073709551615\0",
        ] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
