//! What git begins with when it follows its objects: HEAD, the refs and their logs.

use super::reflist::{MAX_LEN, RefList, Value, decode_loose, names_of_logs, strangers};
use super::reflog::plain_moves;
use super::{Git, ObjectKind, Oid};
use crate::durable;

/// An object that has to be here, and what it has to be, if that matters.
pub type Root = (Option<ObjectKind>, Oid);

/// What says of other objects that they belong to the repository, or that some do not, and is seldom there.
const MORE_TO_FOLLOW: [&str; 4] = ["info/grafts", "reftable", "shallow", "worktrees"];

impl Git {
    /// Returns what HEAD, the refs and their logs lead to, or `None` if only git can say: something is not what git writes, or there is more to follow.
    pub fn roots(&self) -> Option<Vec<Root>> {
        let dir = self.git_dir();
        if MORE_TO_FOLLOW.iter().any(|name| durable::is_there(&dir.join(name))) || !strangers(dir).ok()?.is_empty() {
            return None;
        }
        let mut roots = Vec::new();
        match decode_loose(&durable::read(&dir.join("HEAD")).ok()?) {
            Value::Direct(oid) => roots.push((Some(ObjectKind::Commit), oid)),
            // If it is there, it is in the list.
            Value::Symbolic if self.head_ref().ok()??.starts_with(BRANCHES) => (),
            Value::Symbolic | Value::Broken => return None,
        }
        let list = RefList::of(dir).ok()?;
        // What comes after the part that is read may begin a line.
        let is_long = durable::look(&dir.join("packed-refs")).is_ok_and(|meta| meta.len() >= MAX_LEN);
        if list.packed_problem.is_some() || is_long {
            return None;
        }
        for (name, value) in &list.refs {
            let oid = match value {
                Value::Direct(oid) => *oid,
                Value::Symbolic => self.read_ref(name).ok()??,
                Value::Broken => return None,
            };
            roots.push((name.starts_with(BRANCHES).then_some(ObjectKind::Commit), oid));
        }
        for name in names_of_logs(dir).ok()?.iter().map(String::as_str).chain(["HEAD"]) {
            let moves = plain_moves(dir, name).ok()??;
            roots.extend(moves.into_iter().flat_map(<[Oid; 2]>::from).filter(|oid| !oid.is_null()).map(|oid| (None, oid)));
        }
        Some(roots)
    }
}

const BRANCHES: &str = "refs/heads/";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::git::verify::Sound;

    /// Makes a repository with two commits, the last of them with a tag, all in a pack, and logs of the branch and HEAD; returns it with the last commit.
    fn repository() -> (tempfile::TempDir, Git, String) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let mut parent = None;
        for content in ["one", "two"] {
            let blob = said(&git, &["hash-object", "-w", "--stdin"], content);
            let sub = said(&git, &["mktree"], &format!("100644 blob {blob}\tx\n"));
            let tree = said(&git, &["mktree"], &format!("100644 blob {blob}\ta\n040000 tree {sub}\td\n"));
            let before = parent.map_or(String::new(), |parent| format!("parent {parent}\n"));
            let text = format!("tree {tree}\n{before}author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
            let commit = said(&git, &["hash-object", "-w", "-t", "commit", "--stdin"], &text);
            said(&git, &["-c", "core.logAllRefUpdates=true", "update-ref", "-m", "x", "HEAD", &commit], "");
            parent = Some(commit);
        }
        let tip = parent.unwrap();
        said(&git, &["update-ref", "refs/tags/x", &tip], "");
        (dir, git, tip)
    }

    fn said(git: &Git, args: &[&str], input: &str) -> String {
        String::from_utf8(git.run_with_input(args, input.as_bytes()).unwrap()).unwrap().trim().to_owned()
    }

    fn is_whole(git: &Git) -> bool {
        let Some(roots) = git.roots() else { return false };
        let found = git.check_files(&|_| false, &Sound::default(), &roots).unwrap();
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        found.is_whole && found.wanted.is_some()
    }

    fn git_complains(git: &Git) -> bool {
        let said = git.output(&["fsck", "--connectivity-only", "--no-dangling", "--no-progress"], b"").unwrap();
        let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        text.lines().any(|line| !line.starts_with("notice:")) || !said.status.success()
    }

    /// An object that is nowhere.
    const NOWHERE: &str = "1111111111111111111111111111111111111111";

    type Change = fn(&Git, &str);

    #[test]
    fn what_is_plain_and_whole_needs_no_git() {
        let cases: [(&str, Change); 9] = [
            ("nothing", |_, _| ()),
            ("a commit-graph", |git, _| {
                _ = said(git, &["-c", "core.commitGraph=true", "commit-graph", "write", "--reachable"], "")
            }),
            ("a pack", |git, _| _ = said(git, &["repack", "-adq"], "")),
            ("packed refs", |git, _| _ = said(git, &["pack-refs", "--all"], "")),
            ("a detached HEAD", |git, tip| _ = said(git, &["update-ref", "--no-deref", "HEAD", tip], "")),
            ("an unborn branch", |git, _| _ = said(git, &["symbolic-ref", "HEAD", "refs/heads/new"], "")),
            ("a symbolic ref", |git, _| _ = said(git, &["symbolic-ref", "refs/remotes/o/HEAD", "refs/heads/main"], "")),
            ("a tag of a blob", |git, tip| _ = said(git, &["update-ref", "refs/tags/b", &format!("{tip}:a")], "")),
            ("no log", |git, _| fs::remove_dir_all(git.git_dir().join("logs")).unwrap()),
        ];
        for (what, change) in cases {
            let (_dir, git, tip) = repository();
            change(&git, &tip);
            assert!(is_whole(&git) && !git_complains(&git), "{what}");
        }
    }

    #[test]
    fn what_git_complains_of_is_left_to_git() {
        fn write(git: &Git, name: &str, content: &str) {
            let path = git.git_dir().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fn append(git: &Git, name: &str, content: &str) {
            let bytes = fs::read_to_string(git.git_dir().join(name)).unwrap();
            write(git, name, &(bytes + content));
        }
        fn remove(git: &Git, rev: &str) {
            let oid = said(git, &["rev-parse", rev], "");
            fs::remove_file(git.git_dir().join("objects").join(&oid[..2]).join(&oid[2..])).unwrap();
        }
        const MOVE: &str = "A <a@b> 1 +0000\tx\n";
        // And whether every git complains.
        let cases: [(&str, bool, Change); 30] = [
            ("a branch that leads nowhere", true, |git, _| write(git, "refs/heads/b", &format!("{NOWHERE}\n"))),
            ("a tag that leads nowhere", true, |git, _| write(git, "refs/tags/t", &format!("{NOWHERE}\n"))),
            ("a packed ref that leads nowhere", true, |git, _| write(git, "packed-refs", &format!("{NOWHERE} refs/tags/t\n"))),
            ("packed refs of which not all is read", true, |git, tip| {
                let dirs = format!("{}/", "x".repeat(240)).repeat(3);
                let line = |oid: &str, at: usize| format!("{oid} refs/tags/{dirs}{at:0>249}\n");
                let n_lines = MAX_LEN as usize / 1024;
                assert_eq!(line(tip, 0).len(), 1024);
                write(git, "packed-refs", &((0..n_lines).map(|at| line(tip, at)).collect::<String>() + &line(NOWHERE, n_lines)));
            }),
            ("a branch of a tree", true, |git, tip| {
                write(git, "refs/heads/b", &format!("{}\n", said(git, &["rev-parse", &format!("{tip}^{{tree}}")], "")));
            }),
            ("a ref that is cut short", true, |git, tip| write(git, "refs/tags/t", &tip[..39])),
            ("an empty ref", true, |git, _| write(git, "refs/heads/b", "")),
            ("a symbolic ref that leads nowhere", true, |git, _| write(git, "refs/remotes/o/HEAD", "ref: refs/remotes/o/b\n")),
            ("HEAD on a tag", true, |git, _| write(git, "HEAD", "ref: refs/tags/x\n")),
            ("HEAD on nothing", true, |git, _| write(git, "HEAD", &format!("{NOWHERE}\n"))),
            ("a log of what was not there", true, |git, tip| {
                append(git, "logs/refs/heads/main", &format!("{NOWHERE} {tip} {MOVE}"));
            }),
            ("a log of ORIG_HEAD", true, |git, tip| write(git, "logs/ORIG_HEAD", &format!("{tip} {NOWHERE} {MOVE}"))),
            ("a log of something", true, |git, tip| write(git, "logs/some/thing", &format!("{tip} {NOWHERE} {MOVE}"))),
            ("refs in another directory", true, |git, _| {
                write(git, "elsewhere/b", &format!("{NOWHERE}\n"));
                std::os::unix::fs::symlink("../elsewhere", git.git_dir().join("refs/remotes")).unwrap();
            }),
            ("a ref that leads to itself", false, |git, _| {
                std::os::unix::fs::symlink("t", git.git_dir().join("refs/tags/t")).unwrap();
            }),
            ("a log that leads to itself", false, |git, _| {
                fs::remove_file(git.git_dir().join("logs/HEAD")).unwrap();
                std::os::unix::fs::symlink("HEAD", git.git_dir().join("logs/HEAD")).unwrap();
            }),
            ("a log of what is not there", true, |git, tip| append(git, "logs/HEAD", &format!("{tip} {NOWHERE} {MOVE}"))),
            ("the empty tree, which is not stored", true, |git, _| {
                said(git, &["update-ref", "refs/devops/e", &crate::git::empty_tree().to_string()], "");
            }),
            ("no commit", true, |git, _| remove(git, "main~1")),
            ("no root", true, |git, _| remove(git, "main^{tree}")),
            ("no directory", true, |git, _| remove(git, "main:d")),
            ("no file", true, |git, _| remove(git, "main:a")),
            ("no file of an earlier commit", true, |git, _| remove(git, "main~1:a")),
            ("no file, but a pack of the rest", true, |git, tip| {
                let file = said(git, &["rev-parse", "main:a"], "");
                let all = said(git, &["rev-list", "--objects", "--no-object-names", tip], "").replace(&file, "");
                let pack = git.git_dir().join("objects/pack/pack");
                said(git, &["pack-objects", "-q", &pack.to_string_lossy()], &format!("{}\n", all.replace("\n\n", "\n")));
                said(git, &["prune-packed"], "");
                remove(git, "main:a");
            }),
            ("a file that nothing needs", false, |git, _| {
                _ = said(git, &["mktree", "--missing"], &format!("100644 blob {NOWHERE}\tx\n"))
            }),
            ("a log that ends torn", false, |git, tip| append(git, "logs/HEAD", &format!("{tip} {tip}"))),
            ("a log with a line of somebody", false, |git, _| append(git, "logs/HEAD", "x\n")),
            ("a ref that is being moved", false, |git, _| write(git, "refs/heads/main.lock", "")),
            ("grafts", true, |git, _| write(git, "info/grafts", "")),
            ("the end of a shallow history", false, |git, tip| write(git, "shallow", &format!("{tip}\n"))),
        ];
        for (what, is_told, change) in cases {
            let (_dir, git, tip) = repository();
            assert!(is_whole(&git));
            change(&git, &tip);
            assert!(!is_whole(&git), "{what}");
            assert!(!is_told || git_complains(&git), "{what}");
        }
    }
}
