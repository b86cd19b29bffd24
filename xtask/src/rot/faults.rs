//! What can happen to a stored file without anybody writing it: each as a change of its bytes.

use std::fs::{self, File, FileTimes};
use std::path::Path;

use crate::command::{Context, Result};
use crate::fixtures::Seeded;

/// One fault of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This bit, counted from the start of the file, is flipped.
    Flip(u64),
    /// The 512 bytes from here on are zero.
    Zero(u64),
    /// The 4 KiB from here on are those of an earlier version of the file.
    Stale(u64),
    /// The 4 KiB from here on are those of another file of the same kind, or of another place in this one.
    Elsewhere(u64),
    /// The 64 KiB from here on, or what there is of them, are noise.
    Garbage(u64),
    /// The file ends here.
    Truncate(u64),
    /// Noise follows the end.
    Append,
    /// It has the content of another file of its kind, and that one has its.
    Swap,
    /// It is gone.
    Delete,
}

/// The kinds of faults, as the table has them.
pub const KINDS: &[&str] =
    &["bit flip", "zeroed sector", "stale block", "misplaced block", "garbage", "truncation", "append", "swap", "deletion"];

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const GARBAGE: usize = 64 << 10;

/// Bytes of which every bit is flipped by itself.
const EVERY_BIT: u64 = 64;
/// One bit out of so many is flipped in the short form.
pub const SHORT: u64 = 256;

impl Fault {
    /// Returns which of [`KINDS`] it is.
    pub fn kind(&self) -> usize {
        match self {
            Fault::Flip(_) => 0,
            Fault::Zero(_) => 1,
            Fault::Stale(_) => 2,
            Fault::Elsewhere(_) => 3,
            Fault::Garbage(_) => 4,
            Fault::Truncate(_) => 5,
            Fault::Append => 6,
            Fault::Swap => 7,
            Fault::Delete => 8,
        }
    }

    /// Returns all faults of a file of `len` bytes, of the bits of its beginning one of every `thin`; with [`SHORT`] few of each kind.
    pub fn all(len: u64, thin: u64, seed: u64) -> Vec<Fault> {
        let mut random = Seeded::new(seed);
        let mut all: Vec<Fault> =
            (0..8 * len.min(EVERY_BIT)).filter(|bit| (bit + seed).is_multiple_of(thin)).map(Fault::Flip).collect();
        let mut places = if thin < SHORT { vec![0, len / 2, len.saturating_sub(1)] } else { vec![len / 2] };
        if len > EVERY_BIT {
            let n = if thin < SHORT { 64 } else { 1 };
            all.extend((0..n).map(|_| Fault::Flip(8 * EVERY_BIT + random.next() % (8 * (len - EVERY_BIT)))));
            // The end is where what was written last stands.
            let last = if thin < SHORT { 20 } else { 1 };
            all.extend((1..=last.min(len)).map(|from_end| Fault::Flip(8 * (len - from_end) + random.next() % 8)));
        }
        places.dedup();
        for at in places {
            all.push(Fault::Zero(at / SECTOR as u64 * SECTOR as u64));
            all.push(Fault::Stale(at / BLOCK as u64 * BLOCK as u64));
            all.push(Fault::Elsewhere(at / BLOCK as u64 * BLOCK as u64));
            all.push(Fault::Garbage(at / BLOCK as u64 * BLOCK as u64));
        }
        if len > 0 {
            all.extend([len - 1, len / 2, 0].map(Fault::Truncate));
        }
        all.extend([Fault::Append, Fault::Swap, Fault::Delete]);
        all.dedup();
        all
    }

    /// Does it to the file `path`, whose time stays as it was; `false` if that changes nothing.
    ///
    /// `earlier` is where an earlier version of the file would be, `other` another file of the same kind.
    pub fn strike(&self, path: &Path, earlier: &Path, other: Option<&Path>) -> Result<bool> {
        let what = || format!("cannot damage '{}'", path.display());
        let before = fs::read(path).context(what)?;
        let splice = |at: u64, source: &[u8], len: usize| {
            let (mut bytes, at) = (before.clone(), at as usize);
            let end = (at + len).min(bytes.len()).min(source.len().max(at));
            if at < end {
                bytes[at..end].copy_from_slice(&source[at..end]);
            }
            bytes
        };
        let noise = |len: usize| Seeded::new(before.len() as u64).bytes(len);
        let after = match *self {
            Fault::Flip(bit) => {
                let mut bytes = before.clone();
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
                bytes
            }
            Fault::Zero(at) => splice(at, &vec![0; before.len()], SECTOR),
            Fault::Stale(at) => match fs::read(earlier) {
                Ok(old) if before.len() <= BLOCK => old,
                Ok(old) => splice(at, &old, BLOCK),
                Err(_) => return Ok(false),
            },
            Fault::Elsewhere(at) => match other.map(fs::read).transpose().context(what)? {
                Some(other) if before.len() <= BLOCK => other,
                Some(other) => splice(at, &other, BLOCK),
                None => {
                    let mut turned = before.clone();
                    turned.rotate_left(before.len() / 2);
                    splice(at, &turned, BLOCK)
                }
            },
            Fault::Garbage(at) => {
                let mut bytes = before.clone();
                let (at, end) = (at as usize, (at as usize + GARBAGE).min(before.len()));
                bytes[at..end].copy_from_slice(&noise(end - at));
                bytes
            }
            Fault::Truncate(len) => before[..len as usize].to_vec(),
            Fault::Append => [&before[..], &noise(100)].concat(),
            Fault::Swap => {
                let Some(other) = other else { return Ok(false) };
                let bytes = fs::read(other).context(what)?;
                put(other, &before)?;
                bytes
            }
            Fault::Delete => {
                fs::remove_file(path).context(what)?;
                return Ok(true);
            }
        };
        put(path, &after)?;
        Ok(after != before)
    }
}

/// Gives a file other bytes and leaves its time alone, as a disk does.
fn put(path: &Path, bytes: &[u8]) -> Result {
    let what = || format!("cannot damage '{}'", path.display());
    let meta = fs::metadata(path).context(what)?;
    let mut permissions = meta.permissions();
    let is_readonly = permissions.readonly();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).context(what)?;
    fs::write(path, bytes).context(what)?;
    let file = File::options().write(true).open(path).context(what)?;
    file.set_times(FileTimes::new().set_modified(meta.modified()?)).context(what)?;
    if is_readonly {
        fs::set_permissions(path, meta.permissions()).context(what)?;
    }
    Ok(())
}
