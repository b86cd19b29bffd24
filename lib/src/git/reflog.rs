//! Git's logs of its refs: who moved a ref from where to where. Git appends to them without a sync, so that a power cut can leave the end of one torn.

use std::path::{Path, PathBuf};

use super::Oid;
use crate::durable;
use crate::error::{Context, Result};

/// What git noted about the moves of a ref: pairs of before and after, oldest first.
pub(super) struct Log {
    moves: Vec<(Oid, Oid)>,
    /// Whether there is something in it that neither git nor a power cut leaves.
    pub is_damaged: bool,
}

/// Longest log that is looked at, in bytes; of a longer one the end counts.
const MAX_LOG: usize = 64 << 20;

impl Log {
    /// Reads the log of the ref `name`, if it has one.
    pub fn read(git_dir: &Path, name: &str) -> Result<Option<Self>> {
        Ok(read(&log_path(git_dir, name))?.map(|bytes| Self::decode(&bytes)))
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let (whole, _) = bytes.split_at(whole_len(bytes));
        let cut = whole.len().saturating_sub(MAX_LOG);
        let mut lines = whole[cut..].split(|&b| b == b'\n');
        if cut > 0 {
            lines.next(); // not all of it is left
        }
        let decoded: Vec<_> = lines.map(without_zeros).filter(|line| !line.is_empty()).map(decode_move).collect();
        let is_damaged = decoded.iter().any(Option::is_none);
        Self { moves: decoded.into_iter().flatten().collect(), is_damaged }
    }

    /// Returns where the ref was moved to last; `None` if it was removed, or if nothing is known.
    pub fn last(&self) -> Option<Oid> {
        self.moves.last().map(|(_, new)| *new).filter(|new| !new.is_null())
    }

    /// Says whether the ref was there once.
    pub fn mentions(&self, oid: &Oid) -> bool {
        self.moves.iter().any(|(old, new)| old == oid || new == oid)
    }
}

/// Returns where the log of the ref `name` is.
pub(super) fn log_path(git_dir: &Path, name: &str) -> PathBuf {
    git_dir.join("logs").join(name)
}

/// Takes away what a power cut left of the last line of a log: git would go on in the midst of it.
pub(super) fn cut_torn_end(git_dir: &Path, name: &str) -> Result<()> {
    let path = log_path(git_dir, name);
    let Some(bytes) = read(&path)? else { return Ok(()) };
    match whole_len(&bytes) {
        len if len < bytes.len() => durable::truncate_unsynced(&path, len as u64),
        _ => Ok(()),
    }
}

/// Returns the log of the ref `name` without the lines that git does not write, or that name what is not there; `None` if there are none of these.
pub(super) fn sound_lines(git_dir: &Path, name: &str, is_there: &dyn Fn(&Oid) -> bool) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = read(&log_path(git_dir, name))? else { return Ok(None) };
    let is_sound = |line: &&[u8]| {
        let text = without_zeros(line.strip_suffix(b"\n").unwrap_or(line));
        let knows = |oid: &Oid| oid.is_null() || is_there(oid);
        text.is_empty() || decode_move(text).is_some_and(|(old, new)| knows(&old) && knows(&new))
    };
    let whole = &bytes[..whole_len(&bytes)];
    let sound: Vec<u8> = whole.split_inclusive(|&b| b == b'\n').filter(is_sound).flatten().copied().collect();
    Ok((sound.len() < whole.len()).then_some(sound))
}

/// Returns all that the log of the ref `name` tells, oldest first; `None` if it is not, to its last byte, what git writes.
pub(super) fn plain_moves(git_dir: &Path, name: &str) -> Result<Option<Vec<(Oid, Oid)>>> {
    let bytes = read(&log_path(git_dir, name))?.unwrap_or_default();
    let is_whole = whole_len(&bytes) == bytes.len();
    Ok(bytes.split_inclusive(|&b| b == b'\n').map(decode_move).collect::<Option<_>>().filter(|_| is_whole))
}

/// What a power cut did not let git write reads as zeros, and the next line follows on them.
fn without_zeros(line: &[u8]) -> &[u8] {
    &line[line.iter().take_while(|&&b| b == 0).count()..]
}

/// Removes the log of the ref `name`, if it is there.
pub(super) fn remove_log(git_dir: &Path, name: &str) -> Result<()> {
    let path = log_path(git_dir, name);
    if durable::is_file(&path) { durable::remove(&path) } else { Ok(()) }
}

/// Returns how much of a log is whole lines.
fn whole_len(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if !durable::is_file(path) {
        return Ok(None);
    }
    durable::read_if_there(path).context(|| format!("cannot read '{}'", path.display()))
}

fn decode_move(line: &[u8]) -> Option<(Oid, Oid)> {
    let (old, rest) = line.split_at_checked(41)?;
    let (new, _) = rest.split_at_checked(41)?;
    let oid = |word: &[u8]| Oid::from_hex(word.strip_suffix(b" ")?).ok();
    Some((oid(old)?, oid(new)?))
}

#[cfg(test)]
mod tests {
    use super::super::Git;
    use super::*;

    #[test]
    fn what_a_power_cut_leaves_of_a_log_is_no_damage_and_git_goes_on_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(&dir.path().join("repo"), "main").unwrap();
        let tree = String::from_utf8(git.run(&["mktree"]).unwrap()).unwrap();
        let identity = super::super::Identity { name: "a".into(), email: "a@b".into() };
        let git = git.with_identity(identity);
        let commit = |message: &str| {
            let oid = git.run(&["commit-tree", "-m", message, tree.trim()]).unwrap();
            Oid::from_hex(oid.trim_ascii()).unwrap()
        };
        let [one, two] = ["one", "two"].map(commit);
        let path = log_path(git.git_dir(), "refs/heads/main");
        let log = || Log::read(git.git_dir(), "refs/heads/main").unwrap().unwrap();
        git.update_ref("refs/heads/main", one, None, "one").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for torn in [&b"\0\0\0\0"[..], &whole[..50], b"x"] {
            std::fs::write(&path, [&whole, torn].concat()).unwrap();
            assert!(!log().is_damaged && log().last() == Some(one), "{torn:?}");
            git.update_ref("refs/heads/main", two, Some(one), "two").unwrap();
            assert!(!log().is_damaged && log().last() == Some(two), "{torn:?}");
            assert_eq!(std::fs::read(&path).unwrap().iter().filter(|&&b| b == b'\n').count(), 2);
            git.update_ref("refs/heads/main", one, Some(two), "back").unwrap();
        }
        // Stock git goes on in the midst of it.
        std::fs::write(&path, [&whole[..], &[0; 77], &whole].concat()).unwrap();
        assert!(!log().is_damaged);
        for damage in [[&whole[..], b"x\n"].concat(), [b"x", &whole[..]].concat(), whole[10..].to_vec()] {
            std::fs::write(&path, damage).unwrap();
            assert!(log().is_damaged);
        }
        std::fs::write(&path, whole.repeat(MAX_LOG / whole.len() + 2)).unwrap();
        assert!(!log().is_damaged && log().last() == Some(one));
    }

    #[test]
    fn only_lines_that_nobody_wrote_or_that_lead_nowhere_are_cut_out_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/refs/heads/main");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let [null, here, gone] = ["0", "1", "2"].map(|digit| digit.repeat(40));
        let line = |old: &str, new: &str| format!("{old} {new} a <a@b> 1 +0000\tm\n");
        let is_there = |oid: &Oid| Oid::from_hex(here.as_bytes()).is_ok_and(|here| *oid == here);
        let sound = |text: &str| {
            std::fs::write(&path, text).unwrap();
            sound_lines(dir.path(), "refs/heads/main", &is_there).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
        };
        let good = [line(&null, &here), line(&here, &here), format!("\0\0{}", line(&here, &null))].concat();
        assert_eq!(sound(&good), None);
        assert_eq!(sound(&(good.clone() + "torn")), None, "that is what a power cut leaves");
        for bad in [line(&gone, &here), line(&here, &gone), line(&here, &here).replacen('1', "x", 1), "nonsense\n".into()] {
            assert_eq!(sound(&(good.clone() + &bad + &line(&here, &here))), Some(good.clone() + &line(&here, &here)), "{bad}");
        }
        assert_eq!(sound(&line(&null, &gone)), Some(String::new()));
        assert_eq!(sound_lines(dir.path(), "refs/heads/none", &is_there).unwrap(), None);
    }
}
