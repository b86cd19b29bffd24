//! What commands say: a file each in the state directory, so that a command outlives whoever started it. Of much, the beginning and the end are kept.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::FallocateFlags;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// So much of the beginning of what a command says is kept, in bytes, and as much of its end.
pub(super) const HALF: u64 = 512 << 10;
/// So much more a file may take before its middle is given back, in bytes.
const SLACK: u64 = 4 << 20;
const DIR: &str = "output";
/// What so many commands said is kept in any case,
const MOST: usize = 50;
/// and all that was said since.
const YOUNG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where a command that is to be started says what it says.
#[derive(Debug)]
pub struct Output {
    file: File,
    reader: File,
    /// The middle is gone up to here.
    punched: u64,
    /// Bytes that went where a middle cannot be given back.
    n_lost: u64,
    seen: u64,
}

impl Output {
    /// Makes that of the command whose line in the log is `sequence`: `output/SEQUENCE` in the state directory `state`.
    pub fn create(state: &Path, sequence: u64) -> Result<Self> {
        let path = path(state, sequence);
        durable::create_private_dir(path.parent().unwrap_or(&path))?;
        durable::empty_unsynced(&path)?;
        Self::open(&path)
    }

    /// Makes that of a command without a line in the log: a file without a name, which is gone when nobody has it any more.
    pub fn nameless(state: &Path) -> Result<Self> {
        let dir = state.join(DIR);
        durable::create_private_dir(&dir)?;
        let temp = durable::Temp::beside(&dir.join("said"), 0o600)?;
        Self::open(temp.path())
    }

    fn open(path: &Path) -> Result<Self> {
        let reader = durable::open(path).context(|| format!("cannot read '{}'", path.display()))?;
        Ok(Self { file: durable::open_to_append(path)?, reader, punched: 0, n_lost: 0, seen: 0 })
    }

    /// Returns an end for a command: all ends write behind each other.
    pub fn end(&self) -> Result<Stdio> {
        Ok(self.file.try_clone().context(|| "cannot open what a command is to write to")?.into())
    }

    /// Gives back what the middle of a file takes that became too large; says whether it grew fast.
    pub fn bound(&mut self) -> Result<bool> {
        let size = self.size()?;
        let grew = size.saturating_sub(std::mem::replace(&mut self.seen, size));
        if size < self.punched {
            // The command emptied it itself, as `> /dev/stderr` does.
            self.punched = 0;
        }
        let begin = self.punched.max(HALF);
        if size > begin + HALF + SLACK {
            let end = size - HALF;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.file, how, begin, end - begin) {
                Ok(()) => self.punched = end,
                // A filesystem without holes.
                Err(_) => {
                    self.file.set_len(HALF).context(|| "cannot cut off what a command says")?;
                    self.n_lost += size - HALF;
                }
            }
        }
        Ok(grew > HALF)
    }

    /// Returns what was said, cut to its bounds, and leaves no more than that in the file; whoever still has that writes behind it.
    pub fn keep(mut self) -> Result<Vec<u8>> {
        let said = read(&mut self.reader, self.n_lost)?;
        if self.size()? > 2 * HALF || self.n_lost > 0 {
            let what = || "cannot cut off what a command said";
            self.file.set_len(HALF.min(said.len() as u64)).context(what)?;
            self.file.write_all(said.get(HALF as usize..).unwrap_or_default()).context(what)?;
        }
        Ok(said)
    }

    fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().context(|| "cannot tell how much a command said")?.len())
    }
}

/// Reads the beginning and the end of a file, of which `n_lost` bytes between the two are gone already.
fn read(file: &mut File, n_lost: u64) -> Result<Vec<u8>> {
    let what = || "cannot read what a command said";
    let size = file.metadata().context(what)?.len();
    let mut said = Vec::new();
    file.rewind().context(what)?;
    if size <= 2 * HALF && n_lost == 0 {
        Read::take(&*file, 2 * HALF).read_to_end(&mut said).context(what)?;
        return Ok(said);
    }
    Read::take(&*file, HALF).read_to_end(&mut said).context(what)?;
    let from = size.saturating_sub(HALF).max(HALF.min(size));
    said.extend(format!("\n[{} bytes left out]\n", from.saturating_sub(HALF) + n_lost).into_bytes());
    file.seek(SeekFrom::Start(from)).context(what)?;
    Read::take(&*file, HALF).read_to_end(&mut said).context(what)?;
    Ok(said)
}

/// Cuts what grew since to its bounds, since a daemon that a command started may still write there, and removes what is old: neither among the newest
/// ones, nor written to of late, nor what the command in line `wanted` said.
pub(super) fn tidy(state: &Path, now: u64, wanted: Option<u64>) -> Result<()> {
    let kept = kept(state)?;
    for (at, (sequence, path)) in kept.iter().rev().enumerate() {
        // Whoever ends a command that outlived its run may look at the same file.
        let Ok(found) = durable::look(path) else { continue };
        let is_old = found.modified().is_ok_and(|time| time + YOUNG < UNIX_EPOCH + Duration::from_secs(now));
        if at >= MOST && is_old && wanted != Some(*sequence) {
            durable::remove(path)?;
        } else if found.len() > 2 * HALF + SLACK {
            Output::open(path)?.keep()?;
        }
    }
    Ok(())
}

/// Returns the files that something is kept in, with their numbers, ascending.
fn kept(state: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let dir = state.join(DIR);
    if !durable::is_dir(&dir) {
        return Ok(Vec::new());
    }
    let listed = durable::list(&dir).context(|| format!("cannot list '{}'", dir.display()))?;
    let one = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
    let mut all: Vec<(u64, PathBuf)> =
        listed.into_iter().filter(|listed| !listed.is_dir).filter_map(|listed| one(listed.path)).collect();
    all.sort_unstable();
    Ok(all)
}

/// Returns the highest number that something is kept under; 0 if nothing is.
pub(super) fn highest(state: &Path) -> Result<u64> {
    Ok(kept(state)?.last().map_or(0, |(sequence, _)| *sequence))
}

fn path(state: &Path, sequence: u64) -> PathBuf {
    state.join(DIR).join(sequence.to_string())
}

/// Returns what the command said whose line in the log is `sequence`, cut to its bounds.
///
/// Fails with [`Kind::NotFound`] where that is no line of a command, and where it was so long ago that what it said is gone.
pub fn output(state: &Path, sequence: u64) -> Result<Vec<u8>> {
    let path = path(state, sequence);
    if !durable::is_there(&path) {
        let message = format!("nothing that a command said is kept under number {sequence}; 'gdo log --host' lists the commands");
        return Err(Error::new(Kind::NotFound, message));
    }
    let what = || format!("cannot read '{}'", path.display());
    read(&mut durable::open(&path).context(what)?, 0).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_much_is_given_back_while_it_grows() {
        use std::os::unix::fs::MetadataExt;
        let state = tempfile::tempdir().unwrap();
        let mut output = Output::create(state.path(), 7).unwrap();
        let mut end = output.file.try_clone().unwrap();
        end.write_all(b"begin\n").unwrap();
        for _ in 0..40 {
            end.write_all(&[b'x'; 1 << 20]).unwrap();
            output.bound().unwrap();
            let taken = std::fs::metadata(path(state.path(), 7)).unwrap().blocks() * 512;
            assert!(taken <= 2 * HALF + SLACK + (1 << 20), "{taken}");
        }
        end.write_all(b"end\n").unwrap();
        let kept = output.keep().unwrap();
        let n_left_out = (40 << 20) + 10 - 2 * HALF;
        let marker = format!("\n[{n_left_out} bytes left out]\n");
        assert!(kept.starts_with(b"begin\nx") && kept.ends_with(b"xend\n"));
        assert_eq!(kept.len() as u64, 2 * HALF + marker.len() as u64);
        assert_eq!(&kept[HALF as usize..][..marker.len()], marker.as_bytes());
        assert_eq!(std::fs::read(path(state.path(), 7)).unwrap(), kept);
        // A daemon goes on behind it.
        end.write_all(b"later\n").unwrap();
        assert!(super::output(state.path(), 7).unwrap().ends_with(b"end\nlater\n"));
        end.write_all(&vec![b'y'; 2 * (SLACK as usize)]).unwrap();
        tidy(state.path(), 0, None).unwrap();
        assert!(std::fs::metadata(path(state.path(), 7)).unwrap().len() < 2 * HALF + 100);
        assert_eq!(highest(state.path()).unwrap(), 7);
    }

    #[test]
    fn a_file_that_its_command_emptied_goes_on() {
        let state = tempfile::tempdir().unwrap();
        let mut output = Output::create(state.path(), 1).unwrap();
        let mut end = output.file.try_clone().unwrap();
        end.write_all(&[b'x'; 10 << 20]).unwrap();
        output.bound().unwrap();
        end.set_len(0).unwrap();
        end.write_all(b"anew\n").unwrap();
        output.bound().unwrap();
        assert_eq!(output.keep().unwrap(), b"anew\n");
        let mut nameless = Output::nameless(state.path()).unwrap();
        nameless.file.write_all(b"said\n").unwrap();
        assert_eq!(std::fs::read_dir(state.path().join(DIR)).unwrap().count(), 1);
        nameless.bound().unwrap();
        assert_eq!(nameless.keep().unwrap(), b"said\n");
    }
}
