//! Random sequences of calls on `safepath`, `durable` and the git index, each beside a model that is too simple to be wrong; stock git is the second
//! author of the index.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use git_devops::durable::{self, Lock, Temp};
use git_devops::error::Kind;
use git_devops::git::{CachedStat, Git, Index, IndexBuilder, IndexEntry, Oid};
use git_devops::safepath::{Dir, FileKind};
use proptest::prelude::*;

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

// ---- one directory

/// Good names, and those that must never reach the kernel.
const NAMES: [&[u8]; 9] = [b"a", b"b", b"\xff\n", b"d", b"", b"..", b"a/b", b".", b"nul\0"];

#[derive(Clone, Debug)]
enum OnDir {
    Write(usize, u8),
    Link(usize, usize),
    Symlink(usize, u8),
    MakeDir(usize),
    RemoveFile(usize),
    RemoveDir(usize),
    Rename(usize, usize),
}

/// A name leads to a node by number, so that two names can lead to one.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(u8),
    Symlink(u8),
    Dir,
}

#[derive(Default)]
struct DirModel {
    names: BTreeMap<Vec<u8>, usize>,
    nodes: Vec<Node>,
}

impl DirModel {
    fn node(&self, name: &[u8]) -> Option<&Node> {
        Some(&self.nodes[*self.names.get(name)?])
    }

    fn add(&mut self, name: &[u8], node: Node) {
        self.nodes.push(node);
        self.names.insert(name.to_vec(), self.nodes.len() - 1);
    }

    fn is_dir(&self, name: &[u8]) -> bool {
        self.node(name) == Some(&Node::Dir)
    }

    /// Does the step and says whether it works.
    fn step(&mut self, step: &OnDir) -> bool {
        let name = |at: &usize| NAMES[*at];
        let is_good = |at: &usize| *at < 4;
        match step {
            OnDir::Write(to, byte) if is_good(to) && !self.is_dir(name(to)) => self.add(name(to), Node::File(*byte)),
            OnDir::Symlink(to, byte) if is_good(to) && !self.is_dir(name(to)) => self.add(name(to), Node::Symlink(*byte)),
            OnDir::Link(from, to) if is_good(from) && is_good(to) => match self.names.get(name(from)).copied() {
                Some(node) if self.nodes[node] != Node::Dir && !self.is_dir(name(to)) => {
                    self.names.insert(name(to).to_vec(), node);
                }
                _ => return false,
            },
            OnDir::MakeDir(at) if is_good(at) && self.node(name(at)).is_none() => self.add(name(at), Node::Dir),
            OnDir::RemoveFile(at) if is_good(at) && !self.is_dir(name(at)) => drop(self.names.remove(name(at))),
            OnDir::RemoveDir(at) if is_good(at) && self.node(name(at)).is_none_or(|node| *node == Node::Dir) => {
                self.names.remove(name(at));
            }
            OnDir::Rename(from, to) if is_good(from) && is_good(to) => {
                let Some(node) = self.names.get(name(from)).copied() else { return false };
                let is_allowed = self.node(name(to)).is_none_or(|there| (*there == Node::Dir) == (self.nodes[node] == Node::Dir));
                if !is_allowed {
                    return false;
                }
                // Of two names of one file both stay, as the kernel has it.
                if self.names.get(name(to)) != Some(&node) {
                    self.names.remove(name(from));
                    self.names.insert(name(to).to_vec(), node);
                }
            }
            _ => return false,
        }
        true
    }
}

fn do_on_dir(dir: &Dir, step: &OnDir) -> git_devops::error::Result<()> {
    let publish = |temp: Vec<u8>, to: &usize| {
        let renamed = dir.rename(&temp, NAMES[*to]);
        dir.remove_file(&temp)?; // of two names of one file both stay
        renamed
    };
    match step {
        OnDir::Write(to, byte) => {
            let (temp, mut file) = dir.create_temp()?;
            file.write_all(&[*byte])?;
            publish(temp, to)
        }
        OnDir::Symlink(to, byte) => publish(dir.create_temp_symlink(&[b'x', byte % 26 + b'a'])?, to),
        OnDir::Link(from, to) => publish(dir.create_temp_link(dir, NAMES[*from])?, to),
        OnDir::MakeDir(at) => dir.make_dir(NAMES[*at]),
        OnDir::RemoveFile(at) => dir.remove_file(NAMES[*at]),
        OnDir::RemoveDir(at) => dir.remove_dir(NAMES[*at]),
        OnDir::Rename(from, to) => dir.rename(NAMES[*from], NAMES[*to]),
    }
}

fn must_be_as_modelled(dir: &Dir, model: &DirModel) {
    let mut entries: Vec<_> = dir.entries().unwrap().into_iter().map(|entry| entry.name).collect();
    entries.sort();
    assert_eq!(entries, model.names.keys().cloned().collect::<Vec<_>>());
    for name in &NAMES[..4] {
        let stat = dir.stat(name).unwrap();
        let content = dir.open_file(name).map(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let link = dir.read_link(name);
        let is_dir = dir.open_dir(name).is_ok();
        let Some(node) = model.node(name) else {
            assert!(stat.is_none() && content.is_err() && link.is_err() && !is_dir);
            continue;
        };
        let stat = stat.unwrap();
        let n_names = model.names.values().filter(|number| model.names[*name] == **number).count();
        match node {
            Node::File(byte) => {
                assert_eq!((stat.kind, content.unwrap(), link.is_err(), is_dir), (FileKind::File, vec![*byte], true, false));
            }
            Node::Symlink(byte) => {
                let target = vec![b'x', byte % 26 + b'a'];
                assert_eq!((stat.kind, link.unwrap(), content.is_err(), is_dir), (FileKind::Symlink, target, true, false));
            }
            Node::Dir => assert_eq!((stat.kind, is_dir, content.is_err(), link.is_err()), (FileKind::Dir, true, true, true)),
        }
        assert!(*node == Node::Dir || stat.nlink as usize == n_names);
    }
}

fn steps_on_dir() -> impl Strategy<Value = Vec<OnDir>> {
    let name = || prop_oneof![9 => 0..4_usize, 1 => 4..NAMES.len()];
    let step = prop_oneof![
        4 => (name(), any::<u8>()).prop_map(|(to, byte)| OnDir::Write(to, byte)),
        3 => (name(), name()).prop_map(|(from, to)| OnDir::Link(from, to)),
        2 => (name(), any::<u8>()).prop_map(|(to, byte)| OnDir::Symlink(to, byte)),
        2 => name().prop_map(OnDir::MakeDir),
        2 => name().prop_map(OnDir::RemoveFile),
        2 => name().prop_map(OnDir::RemoveDir),
        3 => (name(), name()).prop_map(|(from, to)| OnDir::Rename(from, to)),
    ];
    proptest::collection::vec(step, 1..40)
}

// ---- files of our own and their locks

#[derive(Clone, Debug)]
enum OnFiles {
    Publish(usize, Vec<u8>),
    Abandon(usize, Vec<u8>),
    Lock { slot: usize, is_exclusive: bool },
    Unlock(usize),
}

const FILES: [&str; 3] = ["state", "list", "note"];
const SLOTS: usize = 4;

fn steps_on_files() -> impl Strategy<Value = Vec<OnFiles>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    let step = prop_oneof![
        2 => (0..FILES.len(), bytes()).prop_map(|(at, bytes)| OnFiles::Publish(at, bytes)),
        1 => (0..FILES.len(), bytes()).prop_map(|(at, bytes)| OnFiles::Abandon(at, bytes)),
        4 => (0..SLOTS, any::<bool>()).prop_map(|(slot, is_exclusive)| OnFiles::Lock { slot, is_exclusive }),
        3 => (0..SLOTS).prop_map(OnFiles::Unlock),
    ];
    proptest::collection::vec(step, 1..40)
}

fn play_on_files(dir: &Path, steps: &[OnFiles]) {
    let mut files = BTreeMap::new();
    let mut held: [Option<(bool, Lock)>; SLOTS] = Default::default();
    let lock = dir.join("lock");
    for step in steps {
        match step {
            OnFiles::Publish(at, bytes) => {
                durable::publish(&dir.join(FILES[*at]), bytes, 0o600).unwrap();
                files.insert(FILES[*at], bytes.clone());
            }
            OnFiles::Abandon(at, bytes) => {
                let mut temp = Temp::beside(&dir.join(FILES[*at]), 0o600).unwrap();
                temp.file.write_all(bytes).unwrap();
            }
            OnFiles::Lock { slot, is_exclusive } => {
                held[*slot] = None;
                let is_free = held.iter().flatten().all(|(other, _)| !is_exclusive && !other);
                let take = || if *is_exclusive { Lock::exclusive(&lock) } else { Lock::shared(&lock) };
                let mut taken = take();
                // A git that another test starts just then has our open files too, until it is another program.
                for _ in 0..100 {
                    if is_free && taken.is_err() {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                        taken = take();
                    }
                }
                assert_eq!(taken.as_ref().err().map(|error| error.kind()), (!is_free).then_some(Kind::Locked));
                held[*slot] = taken.ok().map(|taken| (*is_exclusive, taken));
            }
            OnFiles::Unlock(slot) => held[*slot] = None,
        }
        for name in FILES {
            assert_eq!(durable::read_if_there(&dir.join(name)).unwrap(), files.get(name).cloned());
        }
        let n_there = fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "lock").count();
        assert_eq!(n_there, files.len(), "nothing else is left");
    }
}

// ---- the git index, by two authors

/// No path is a directory of another one.
const PATHS: [&str; 8] = ["a", "a-b/c", "a0", "b/c/d", "b/c0", "b-", "sub/\u{e9}", "\u{1}"];

/// One entry of the model: mode, blob, what is known of the file, whether it is skipped.
type Modelled = (u32, usize, CachedStat, bool);

#[derive(Clone, Debug)]
enum OnIndex {
    /// Our writer changes these entries.
    Ours(Vec<(usize, Option<Modelled>)>),
    /// Git changes them; it knows nothing of a file that is not there.
    Gits(Vec<(usize, Option<(u32, usize)>)>),
    /// Git sets or takes away that an entry is skipped.
    Skip(usize, bool),
    /// Git writes it all again in another version.
    Version(u8),
}

fn steps_on_index() -> impl Strategy<Value = Vec<OnIndex>> {
    let mode = || prop_oneof![Just(0o100644_u32), Just(0o100755), Just(0o120000)];
    let path = || 0..PATHS.len();
    let stat = (any::<[u32; 6]>(), 0..1_000_000_000_u32, 0..1_000_000_000_u32).prop_map(|(words, first, second)| CachedStat {
        ctime: (words[0], first),
        mtime: (words[1], second),
        dev: words[2],
        ino: words[3],
        uid: words[4],
        gid: words[5],
        size: words[0] ^ words[5],
    });
    let entry = (mode(), 0..3_usize, stat, any::<bool>());
    let step = prop_oneof![
        3 => proptest::collection::vec((path(), proptest::option::weighted(0.7, entry)), 1..5).prop_map(OnIndex::Ours),
        3 => proptest::collection::vec((path(), proptest::option::weighted(0.7, (mode(), 0..3_usize))), 1..5).prop_map(OnIndex::Gits),
        1 => (path(), any::<bool>()).prop_map(|(at, is_skipped)| OnIndex::Skip(at, is_skipped)),
        1 => prop_oneof![Just(2_u8), Just(4)].prop_map(OnIndex::Version),
    ];
    proptest::collection::vec(step, 1..8)
}

fn play_on_index(git: &Git, blobs: &[Oid], steps: &[OnIndex]) {
    let path = git.git_dir().join("index");
    let mut model = BTreeMap::<&str, Modelled>::new();
    for step in steps {
        match step {
            OnIndex::Ours(changes) => {
                for (at, change) in changes {
                    match change {
                        Some(entry) => drop(model.insert(PATHS[*at], *entry)),
                        None => drop(model.remove(PATHS[*at])),
                    }
                }
                let mut builder = IndexBuilder::default();
                for (path, (mode, blob, stat, skip_worktree)) in &model {
                    let (path, oid, skip_worktree) = (path.as_bytes(), blobs[*blob], *skip_worktree);
                    let entry = IndexEntry { path, oid, mode: *mode, stat: *stat, skip_worktree, intent_to_add: false };
                    builder.push(&entry).unwrap();
                }
                builder.build().write(git.git_dir()).unwrap();
            }
            OnIndex::Gits(changes) => {
                let mut input = String::new();
                for (at, change) in changes {
                    match change {
                        Some((mode, blob)) => {
                            input += &format!("{mode:o} {}\t{}\0", blobs[*blob], PATHS[*at]);
                            model.insert(PATHS[*at], (*mode, *blob, CachedStat::default(), false));
                        }
                        None => {
                            input += &format!("0 {}\t{}\0", Oid::null(gix_hash::Kind::Sha1), PATHS[*at]);
                            model.remove(PATHS[*at]);
                        }
                    }
                }
                git.run_with_input(&["update-index", "-z", "--index-info"], input.as_bytes()).unwrap();
            }
            OnIndex::Skip(at, is_skipped) => {
                if let Some(entry) = model.get_mut(PATHS[*at]) {
                    entry.3 = *is_skipped;
                    let option = if *is_skipped { "--skip-worktree" } else { "--no-skip-worktree" };
                    git.run(&["update-index", option, "--", PATHS[*at]]).unwrap();
                }
            }
            OnIndex::Version(version) => {
                git.run(&["update-index", "--force-write-index", "--index-version", &version.to_string()]).unwrap();
            }
        }
        must_be_as_listed(git, blobs, &model);
        let read = Index::read(&path).unwrap();
        let ours = read.iter().map(|entry| {
            let blob = blobs.iter().position(|oid| *oid == entry.oid).unwrap();
            (String::from_utf8(entry.path.to_vec()).unwrap(), (entry.mode, blob, entry.stat, entry.skip_worktree))
        });
        assert!(ours.eq(model.iter().map(|(path, entry)| ((*path).to_owned(), *entry))), "{step:?}");
        for path in PATHS {
            assert_eq!(read.lookup(path.as_bytes()).is_some(), model.contains_key(path));
        }
    }
}

/// Compares the model with what git lists.
fn must_be_as_listed(git: &Git, blobs: &[Oid], model: &BTreeMap<&str, Modelled>) {
    const SKIPPED: u32 = 0x4000_0000;
    let listed = git.run(&["-c", "core.quotePath=false", "ls-files", "-z", "--stage", "--debug"]).unwrap();
    let listed = String::from_utf8(listed).unwrap();
    let mut expected = String::new();
    for (path, (mode, blob, stat, is_skipped)) in model {
        let CachedStat { ctime, mtime, dev, ino, uid, gid, size } = stat;
        expected += &format!("{mode:o} {} 0\t{path}\0", blobs[*blob]);
        expected += &format!("  ctime: {}:{}\n  mtime: {}:{}\n", ctime.0, ctime.1, mtime.0, mtime.1);
        expected += &format!("  dev: {dev}\tino: {ino}\n  uid: {uid}\tgid: {gid}\n  size: {size}\tflags: {is_skipped}\n");
    }
    // Of the flags only this one is written into the file.
    let shown = listed.split_inclusive('\n').map(|line| match line.split_once("\tflags: ") {
        Some((before, flags)) => {
            let is_skipped = u32::from_str_radix(flags.trim_end(), 16).unwrap() & SKIPPED != 0;
            format!("{before}\tflags: {is_skipped}\n")
        }
        None => line.to_owned(),
    });
    assert_eq!(shown.collect::<String>(), expected);
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_directory_is_what_a_model_of_names_and_nodes_is(steps in steps_on_dir()) {
        let top = tempfile::tempdir().unwrap();
        let dir = Dir::open(top.path()).unwrap();
        let mut model = DirModel::default();
        for step in &steps {
            prop_assert_eq!(do_on_dir(&dir, step).is_ok(), model.step(step), "{:?}", step);
            must_be_as_modelled(&dir, &model);
        }
    }

    #[test]
    fn our_files_are_whole_and_a_lock_has_many_readers_or_one_writer(steps in steps_on_files()) {
        let top = tempfile::tempdir().unwrap();
        play_on_files(top.path(), &steps);
    }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn an_index_that_git_and_we_write_in_turns_is_what_both_say(steps in steps_on_index()) {
        let top = tempfile::tempdir().unwrap();
        let git = Git::init(&top.path().join("repo"), "main").unwrap();
        let blobs: Vec<Oid> = ["x", "y", "z"]
            .map(|content| git.run_with_input(&["hash-object", "-w", "--stdin"], content.as_bytes()).unwrap())
            .map(|hex| Oid::from_hex(hex.trim_ascii()).unwrap())
            .into();
        // Git wants a work tree for some of it; there is nothing in it.
        fs::create_dir(top.path().join("work")).unwrap();
        play_on_index(&git.with_work_tree(&top.path().join("work")), &blobs, &steps);
    }
}
