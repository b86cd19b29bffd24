//! Keeps what lies at some paths as a commit of its own, before something else is laid down there.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use super::exclude::{ExcludeOptions, Excludes};
use super::scan::{ScanOptions, Scope, Sink, join, scan, split};
use super::stage::CommitInfo;
use super::{Repo, enrolled};
use crate::durable::Lock;
use crate::error::{Error, Kind, Result};
use crate::git::index::IndexBuilder;
use crate::git::pack::PackWriter;
use crate::git::{CommitData, NewIndex, Oid, Signature, write_tree};
use crate::metadata::{escaped, unescaped};
use crate::progress::Progress;
use crate::safepath::Dir;
use crate::store::WriteOptions;

/// What was kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Preimage {
    /// The commit that was laid down over it.
    pub over: Oid,
    /// Its tree, which has the paths that were there, and directories on the way to them.
    pub tree: Oid,
    /// Paths that it tells of, sorted; those that are not in the tree were not there.
    pub paths: BTreeSet<Vec<u8>>,
    /// When it was made, in seconds since 1970.
    pub time: i64,
}

/// Keeps what lies at just `paths`, each by itself, in a commit that the ref `name` leads to; durable on return.
///
/// Its parent is `over`, the commit that is laid down next; its message lists the paths. What cannot be read is an error.
pub fn keep(
    repo: &Repo,
    lock: &Lock,
    name: &str,
    over: Oid,
    paths: &BTreeSet<Vec<u8>>,
    info: &CommitInfo,
    progress: &Progress,
) -> Result<Oid> {
    let root = Dir::open(&repo.places.work_tree)?;
    // A directory is named by something in it that is not there: so it is looked at, and nothing below it.
    let named = |path: &Vec<u8>| match root.open_path(path) {
        Ok(_) => join(path, b".git-devops-nothing"),
        Err(_) => path.clone(),
    };
    let named: Vec<Vec<u8>> = paths.iter().map(named).collect();
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Paths(named), excludes, one_file_system: false, by_reference: false };
    enrolled::enrol(&repo.places)?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let chunks = repo.store.writer(WriteOptions { level: repo.settings.level })?;
    let has_failed = AtomicBool::new(false);
    let sink = Sink::Store { pack: &pack, chunks: &chunks, references: None, hand_over: None, has_failed: &has_failed };
    // Against nothing: whatever is there is taken, with no policy of any commit.
    let nothing = IndexBuilder::default().build();
    let found = scan(repo, &nothing, &options, sink, progress)?;
    if found.is_partial {
        return Err(Error::new(Kind::Partial, "cannot keep what is there before it is overwritten; nothing was changed"));
    }
    let tree = write_tree(NewIndex::new(&nothing, found.updates, &[])?.files(), &pack)?;
    let signature = Signature::new(&info.identity, info.time, info.offset);
    let commit = pack.commit(&CommitData {
        tree,
        parents: vec![over],
        author: signature.clone(),
        committer: signature,
        message: message(&info.message, paths),
    })?;
    let (_, lease) = chunks.finish_with_lease()?;
    let kept = pack.finish()?;
    // A run that was killed before it wrote its line in the log left a ref of this name.
    let git = repo.git.clone().with_identity(info.identity.clone());
    repo.turn_ref(&git, (name, commit), repo.git.read_ref(name)?, "pre-image", lock)?;
    repo.note_refs(lock)?;
    repo.let_go(kept)?;
    drop(lease);
    Ok(commit)
}

/// Reads what [`keep`] kept.
pub fn read(repo: &Repo, commit: Oid) -> Result<Preimage> {
    let bad = || Error::new(Kind::Refused, format!("commit {commit} is not a pre-image"));
    let data = repo.objects.commit(&commit)?;
    let [over] = data.parents[..] else { return Err(bad()) };
    let paths = paths_of(&data.message).ok_or_else(bad)?;
    Ok(Preimage { over, tree: data.tree, paths, time: data.committer.seconds })
}

const TRAILER: &[u8] = b"\n\npaths:\n";

fn message(subject: &str, paths: &BTreeSet<Vec<u8>>) -> Vec<u8> {
    let lines = paths.iter().flat_map(|path| [b"/".to_vec(), escaped(path), b"\n".to_vec()]);
    [subject.as_bytes().to_vec(), TRAILER.to_vec()].into_iter().chain(lines).collect::<Vec<_>>().concat()
}

fn paths_of(message: &[u8]) -> Option<BTreeSet<Vec<u8>>> {
    let at = message.windows(TRAILER.len()).position(|window| window == TRAILER)?;
    let list = message[at + TRAILER.len()..].strip_suffix(b"\n")?;
    list.split(|&b| b == b'\n').map(|line| unescaped(line.strip_prefix(b"/")?).ok()).collect()
}

/// Says whether `path` is one of `named`, or lies below one of them; an empty one stands for everything.
pub fn is_below(named: &[Vec<u8>], path: &[u8]) -> bool {
    let mut at = path;
    loop {
        if named.iter().any(|one| one == at) {
            return true;
        }
        if at.is_empty() {
            return false;
        }
        at = split(at).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_read_back_from_the_message() {
        let paths: BTreeSet<Vec<u8>> = ["", "etc/a b", "etc/\n\npaths:\n"].map(|path| path.as_bytes().to_vec()).into();
        let text = message("fix", &paths);
        assert_eq!(paths_of(&text), Some(paths));
        for bad in ["fix", "fix\n\npaths:\n", "fix\n\npaths:\nx\n", "fix\n\npaths:\n/x"] {
            assert_eq!(paths_of(bad.as_bytes()), None, "{bad}");
        }
    }
}
