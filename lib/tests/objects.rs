//! Objects as stock git stores them, read by our own reader; git itself says what is right.
#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use git_devops::error::Kind;
use git_devops::git::{Git, Objects, Oid, PackWriter};

type Contents = HashMap<Oid, (String, Vec<u8>)>;

/// Makes a repository with a history of `n_versions` of a file and its directories, and an annotated tag.
fn history(dir: &Path, n_versions: usize) -> Git {
    let git = Git::init(dir, "main").unwrap();
    let mut stream = String::new();
    let mut lines: Vec<_> = (0..200).map(|n| format!("line {n} of a file, {}", n * n * 7919)).collect();
    for version in 0..n_versions {
        lines[version * 37 % 200] = format!("changed in version {version}");
        let text = lines.join("\n");
        stream += "commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 1\nm\n";
        for path in ["a", "b/c/d"] {
            stream += &format!("M 100644 inline {path}\ndata {}\n{text}{path}\n", text.len() + path.len());
        }
        stream += &format!("M 100644 inline b/{version}\ndata 0\n\n");
    }
    stream += "tag v1\nfrom refs/heads/main\ntagger A <a@b> 1700000000 +0000\ndata 1\nt\n";
    git.run_with_input(&["-c", "fastimport.unpackLimit=1000000", "fast-import", "--quiet"], stream.as_bytes()).unwrap();
    git
}

/// Returns every object of the repository as git reads it.
fn contents(git: &Git) -> Contents {
    let out = git.run(&["cat-file", "--batch-all-objects", "--batch"]).unwrap();
    let mut rest = &out[..];
    let mut contents = Contents::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let words: Vec<_> = std::str::from_utf8(&rest[..end]).unwrap().split(' ').map(str::to_owned).collect();
        let size: usize = words[2].parse().unwrap();
        let content = rest[end + 1..][..size].to_vec();
        contents.insert(Oid::from_hex(words[0].as_bytes()).unwrap(), (words[1].clone(), content));
        rest = &rest[end + 1 + size + 1..];
    }
    contents
}

#[track_caller]
fn check_all(git_dir: &Path, contents: &Contents) {
    let objects = Objects::open(git_dir).unwrap();
    assert!(contents.len() > 3);
    for (oid, (kind, content)) in contents {
        let (found, bytes) = objects.find(oid).unwrap().unwrap_or_else(|| panic!("{oid} is missing"));
        assert_eq!((&found.to_string(), &bytes), (kind, content), "{oid}");
        assert!(objects.contains(oid));
        match objects.blob_size(oid) {
            Ok(size) => assert_eq!((kind.as_str(), size), ("blob", Some(content.len() as u64))),
            Err(error) => assert!(error.kind() == Kind::Corrupt && kind != "blob", "{error:#}"),
        }
    }
}

/// Returns how many objects git stores as deltas.
fn n_deltas(git: &Git) -> usize {
    let out = git.run(&["cat-file", "--batch-all-objects", "--batch-check=%(deltabase)"]).unwrap();
    String::from_utf8(out).unwrap().lines().filter(|line| !line.starts_with("00000000")).count()
}

fn files(git_dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(git_dir.join("objects/pack")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

#[test]
fn every_object_is_what_git_says_however_git_stores_it() {
    let dir = tempfile::tempdir().unwrap();
    let git = history(dir.path(), 300);
    let all = contents(&git);
    assert_eq!(files(dir.path(), "pack").len(), 0);
    check_all(dir.path(), &all);
    let ways: [&[&str]; 6] = [
        &["gc", "--quiet", "--aggressive", "--prune=now"],
        &["-c", "pack.depth=4000", "-c", "pack.window=5", "repack", "-adfq"],
        &["-c", "repack.useDeltaBaseOffset=false", "repack", "-adfq"],
        &["-c", "pack.packSizeLimit=1m", "repack", "-adFq", "--depth=250"],
        &["multi-pack-index", "write", "--bitmap"],
        &["-c", "core.commitGraph=true", "commit-graph", "write", "--reachable"],
    ];
    for way in ways {
        git.run(way).unwrap();
        assert!(n_deltas(&git) > 300, "{way:?}");
        check_all(dir.path(), &all);
    }
    // A thin pack, which git completes with the base it lacks.
    let clone = tempfile::tempdir().unwrap();
    let other = Git::init(clone.path(), "main").unwrap();
    let url = format!("file://{}", dir.path().display());
    for tip in ["main~40", "main"] {
        let oid = String::from_utf8(git.run(&["rev-parse", tip]).unwrap()).unwrap();
        git.run(&["update-ref", "refs/heads/tip", oid.trim()]).unwrap();
        let fetch = ["fetch", "-q", &url, "tip:tip"];
        let settings = ["-c", "protocol.file.allow=always", "-c", "fetch.unpackLimit=1", "-c", "transfer.unpackLimit=1"];
        let mut command = other.command(&[&settings[..], &fetch[..]].concat());
        assert!(command.env_remove("GIT_ALLOW_PROTOCOL").status().unwrap().success());
    }
    assert_eq!(files(clone.path(), "pack").len(), 2);
    check_all(clone.path(), &contents(&other));
}

#[test]
fn objects_are_read_through_alternates() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, three) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("three"));
    let all = contents(&history(&one, 3));
    Git::init(&two, "main").unwrap();
    Git::init(&three, "main").unwrap();
    let name = |repo: &Path, text: &str| fs::write(repo.join("objects/info/alternates"), text).unwrap();
    name(&two, &format!("# a comment\n{}\n", one.join("objects").display()));
    name(&three, "../../two/objects\n");
    name(&one, "../../three/objects\n");
    check_all(&three, &all);
}

#[test]
fn an_alternate_that_cannot_be_used_is_told_when_an_object_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let git = history(dir.path(), 2);
    let all = contents(&git);
    let missing = Oid::from_hex(&[b'5'; 40]).unwrap();
    assert!(Objects::open(dir.path()).unwrap().find(&missing).unwrap().is_none());
    for (text, words) in [("/nowhere/objects\n", "'/nowhere/objects'"), ("\"/x\"\n", "without quotes")] {
        fs::write(dir.path().join("objects/info/alternates"), text).unwrap();
        let error = format!("{:#}", Objects::open(dir.path()).unwrap().find(&missing).unwrap_err());
        assert!(error.contains(words), "{error}");
        check_all(dir.path(), &all);
    }
}

#[test]
fn objects_of_our_own_packs_are_read_from_more_packs_than_files_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let git = Git::init(dir.path(), "main").unwrap();
    let objects = Objects::open(dir.path()).unwrap();
    for n in 0..100u32 {
        let writer = PackWriter::new(dir.path(), &objects).unwrap();
        writer.blob(&n.to_le_bytes()).unwrap();
        writer.finish().unwrap().unwrap().release().unwrap();
    }
    let all = contents(&git);
    assert_eq!((all.len(), files(dir.path(), "pack").len()), (100, 100));
    for _ in 0..2 {
        for (oid, (_, content)) in &all {
            assert_eq!(objects.blob(oid).unwrap(), *content);
        }
    }
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let n_open = open.filter(|path| path.starts_with(dir.path())).count();
    assert!((1..=65).contains(&n_open), "{n_open} files are open");
}

#[test]
fn objects_are_found_while_somebody_repacks() {
    let dir = tempfile::tempdir().unwrap();
    let git = history(dir.path(), 20);
    let all = contents(&git);
    let objects = Objects::open(dir.path()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        for (oid, (_, content)) in &all {
                            assert_eq!(objects.find(oid).unwrap().expect("it is always there").1, *content);
                        }
                    }
                })
            })
            .collect();
        for n in 0..10 {
            git.run(&["repack", "-adfq", "--depth", &(n * 5).to_string()]).unwrap();
            git.run(&["prune-packed", "-q"]).unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn an_index_of_the_first_version_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let git = history(dir.path(), 3);
    let all = contents(&git);
    git.run(&["repack", "-adq"]).unwrap();
    git.run(&["prune-packed"]).unwrap();
    let idx = files(dir.path(), "idx").remove(0);
    fs::remove_file(&idx).unwrap();
    git.run(&["index-pack".as_ref(), "--index-version=1".as_ref(), idx.with_extension("pack").as_os_str()]).unwrap();
    let error = Objects::open(dir.path()).unwrap().find(all.keys().next().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(format!("{error:#}").contains("git repack"), "{error:#}");
}

/// Replaces the file at `path` by each of `versions`; all objects must then be right, or missing, or an error that names it.
fn check_damage(git_dir: &Path, path: &Path, contents: &Contents, versions: impl Iterator<Item = Vec<u8>>) {
    let (mut n_errors, mut n_missing) = (0, 0);
    for bytes in versions {
        fs::remove_file(path).unwrap();
        fs::write(path, &bytes).unwrap();
        let objects = Objects::open(git_dir).unwrap();
        for (oid, (kind, content)) in contents {
            match objects.find(oid) {
                Ok(Some((found, bytes))) => assert_eq!((&found.to_string(), &bytes), (kind, content)),
                Ok(None) => n_missing += 1,
                Err(error) => {
                    n_errors += 1;
                    let error = format!("{error:#}");
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    assert!(error.contains(name) && error.contains("; "), "{error}");
                }
            }
            let _ = objects.blob_size(oid);
        }
    }
    // Only a name in an index can be damaged so that nothing shows it.
    assert!(n_errors > 0 && (n_missing == 0 || path.extension().is_some_and(|e| e == "idx")), "{n_errors} {n_missing}");
}

#[test]
fn no_damage_of_a_file_makes_a_panic_or_wrong_bytes() {
    for settings in ["repack.useDeltaBaseOffset=true", "repack.useDeltaBaseOffset=false"] {
        let dir = tempfile::tempdir().unwrap();
        let git = history(dir.path(), 2);
        git.run(&["-c", settings, "repack", "-adfq"]).unwrap();
        git.run(&["prune-packed"]).unwrap();
        assert!(n_deltas(&git) > 0);
        let all = contents(&git);
        for extension in ["idx", "pack"] {
            let path = files(dir.path(), extension).remove(0);
            let good = fs::read(&path).unwrap();
            check_damage(dir.path(), &path, &all, (0..good.len()).map(|length| good[..length].to_vec()));
            let flip = |at: usize, mask: u8| {
                let mut bytes = good.clone();
                bytes[at] ^= mask;
                bytes
            };
            let flips = (0..good.len()).flat_map(|at| [1, 0x80, 0xff].map(|mask| flip(at, mask)));
            check_damage(dir.path(), &path, &all, flips);
            fs::remove_file(&path).unwrap();
            fs::write(&path, &good).unwrap();
        }
        check_all(dir.path(), &all);
    }
}

#[test]
fn a_damaged_loose_object_is_told_and_a_good_copy_used() {
    let dir = tempfile::tempdir().unwrap();
    let git = history(dir.path(), 1);
    let all = contents(&git);
    let (oid, (_, content)) = all.iter().max_by_key(|(_, (_, content))| content.len()).unwrap();
    let hex = oid.to_string();
    let path = dir.path().join("objects").join(&hex[..2]).join(&hex[2..]);
    let good = fs::read(&path).unwrap();
    let one = Contents::from([(*oid, all[oid].clone())]);
    check_damage(dir.path(), &path, &one, (0..good.len()).map(|length| good[..length].to_vec()));
    let flips = (0..good.len() * 8).map(|bit| {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    check_damage(dir.path(), &path, &one, flips);
    fs::write(&path, &good).unwrap();
    git.run(&["repack", "-aq"]).unwrap();
    let pack = files(dir.path(), "pack").remove(0);
    let bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, [&bytes[..middle], &vec![0; 400], &bytes[middle + 400..]].concat()).unwrap();
    assert_eq!(Objects::open(dir.path()).unwrap().blob(oid).unwrap(), *content);
}
