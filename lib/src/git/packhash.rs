//! Packs by their bytes: what has the hash of one that was verified need not be unpacked again.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::durable;
use crate::error::Result;
use crate::id::FileHash;
use crate::threads;

/// A pack and its index, by their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackHashes {
    /// That of the pack.
    pub pack: FileHash,
    /// That of its index.
    pub index: FileHash,
}

/// Bytes that a thread hashes by itself: a power of two, so that each part but the last is a whole subtree of BLAKE3's tree.
const PART: u64 = 1 << 20;

/// So many parts a file has at most, however long it says it is.
const MAX_PARTS: u64 = if cfg!(test) { 8 } else { 1 << 16 };

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// A part of a file, and what the tree has of it.
struct Part<'a> {
    path: &'a Path,
    bytes: Range<u64>,
    /// Whether it is the whole file.
    is_all: bool,
    value: OnceLock<Option<ChainingValue>>,
}

/// Returns the hash of all bytes of each file, which is read once and not held; `None` of one that cannot be read. All threads share the work.
///
/// The tree: section 2.1 of the paper on BLAKE3.
pub(super) fn hash_files(paths: &[&Path]) -> Result<Vec<Option<FileHash>>> {
    let files: Vec<Vec<Part>> = paths.iter().map(|path| parts_of(path).unwrap_or_default()).collect();
    let parts: Vec<&Part> = files.iter().flatten().collect();
    let hash = |part: &&Part, buffer: &mut Vec<u8>| {
        part.value.get_or_init(|| part.hash(buffer).ok());
        Ok(())
    };
    threads::each(usize::MAX, &parts, || Ok(vec![0; BUFFER]), hash)?;
    let hash = |parts: Vec<Part>| -> Option<FileHash> {
        let values = parts.into_iter().map(|part| part.value.into_inner()?).collect::<Option<Vec<_>>>()?;
        match &values[..] {
            [] => None,
            [all] => Some(FileHash::from_bytes(*all)),
            more => {
                let (left, right) = halves(more);
                Some(FileHash::from_bytes(*merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes()))
            }
        }
    };
    Ok(files.into_iter().map(hash).collect())
}

fn parts_of(path: &Path) -> Result<Vec<Part<'_>>> {
    let len = durable::look(path)?.len();
    let step = PART.max(len.div_ceil(MAX_PARTS).next_power_of_two());
    let n_parts = len.div_ceil(step).max(1);
    let bytes = |at: u64| at * step..len.min((at + 1).saturating_mul(step));
    Ok((0..n_parts).map(|at| Part { path, bytes: bytes(at), is_all: n_parts == 1, value: OnceLock::new() }).collect())
}

impl Part<'_> {
    fn hash(&self, buffer: &mut [u8]) -> Result<ChainingValue> {
        // Opened for each part, so that the kernel reads ahead in each.
        let file = durable::open(self.path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.bytes.start);
        for at in self.bytes.clone().step_by(buffer.len()) {
            let n_bytes = (self.bytes.end - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..n_bytes], at)?;
            hasher.update(&buffer[..n_bytes]);
        }
        Ok(if self.is_all { *hasher.finalize().as_bytes() } else { hasher.finalize_non_root() })
    }
}

fn merge(subtrees: &[ChainingValue]) -> ChainingValue {
    match subtrees {
        [one] => *one,
        more => {
            let (left, right) = halves(more);
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// Divides two parts or more where BLAKE3 does: on the left is the largest power of two of them that leaves something on the right.
fn halves(subtrees: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    subtrees.split_at(subtrees.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_hash_of_a_file_is_that_of_its_bytes_however_many_parts_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let part = PART as usize;
        let mut bytes = vec![0; 9 * part + 1];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let around = |n: usize| [n - 1, n, n + 1];
        let lengths = [0, 1].into_iter().chain((1..=9).flat_map(|n| around(n * part))).chain(around(4 * part + BUFFER));
        let written = |len: usize| {
            let path = dir.path().join(len.to_string());
            fs::write(&path, &bytes[..len]).unwrap();
            (path, Some(FileHash::of(&bytes[..len])))
        };
        let (mut paths, mut expected): (Vec<_>, Vec<_>) = lengths.map(written).unzip();
        paths.insert(3, dir.path().join("missing"));
        expected.insert(3, None);
        let paths: Vec<&Path> = paths.iter().map(|path| &**path).collect();
        assert!(hash_files(&paths).unwrap() == expected);
        // And where a byte of any part is another one.
        let path = dir.path().join("one");
        for at in (0..bytes.len()).step_by(part / 2 - 1) {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(hash_files(&[&path]).unwrap(), [Some(FileHash::of(&bytes))], "{at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_file_that_says_to_be_very_long_has_no_more_parts_than_there_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        let file = fs::File::create(&path).unwrap();
        for len in [PART * MAX_PARTS, PART * MAX_PARTS + 1, 3 * PART * MAX_PARTS, 1 << 43] {
            file.set_len(len).unwrap();
            let parts = parts_of(&path).unwrap();
            assert!(parts.len() as u64 <= MAX_PARTS && parts.last().unwrap().bytes.end == len);
            let starts = parts.windows(2).all(|two| two[0].bytes.end == two[1].bytes.start);
            assert!(starts && parts[0].bytes.end.is_power_of_two());
        }
    }
}
