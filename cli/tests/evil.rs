//! Hostile input: each is refused by its name (`docs/formats/exit-codes.md`), with nothing written and in little memory and time; what is nearly the
//! same and harmless is taken.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Run, World};
use git_devops::git::ObjectKind;
use git_devops::git::object::object_id;
use git_devops::id::ChunkId;

/// No refusal takes longer; far more than any needs, since tests run beside each other.
const LONGEST: Duration = Duration::from_secs(20);

/// Writes a raw object, however wrong, as git does when told not to look, and returns its name.
fn object(world: &World, kind: &str, bytes: &[u8]) -> String {
    objects(world, kind, &[bytes.to_vec()]).remove(0)
}

fn objects(world: &World, kind: &str, all: &[Vec<u8>]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for (at, bytes) in all.iter().enumerate() {
        let path = dir.path().join(at.to_string());
        std::fs::write(&path, bytes).unwrap();
        list += &format!("{}\n", path.display());
    }
    // From a file: a pipe would fill up while git waits for somebody to read its own.
    let list_path = dir.path().join("list");
    std::fs::write(&list_path, list).unwrap();
    let output = Command::new("git")
        .args([
            "-c",
            "core.fsync=none",
            "--git-dir",
            ".git",
            "hash-object",
            "--literally",
            "--no-filters",
            "-t",
            kind,
            "-w",
            "--stdin-paths",
        ])
        .current_dir(world.path(""))
        .stdin(std::fs::File::open(&list_path).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// One entry of a raw tree: mode as text, name, object.
type Raw = (&'static str, Vec<u8>, String);

fn raw_tree(entries: &[Raw]) -> Vec<u8> {
    let binary = |hex: &str| (0..20).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<u8>>();
    entries.iter().flat_map(|(mode, name, oid)| [mode.as_bytes(), b" ", name, b"\0", &binary(oid)].concat()).collect()
}

fn tree(world: &World, entries: &[Raw]) -> String {
    object(world, "tree", &raw_tree(entries))
}

fn commit(world: &World, tree: &str) -> String {
    let who = "Evil <evil@example.org> 1700000000 +0000";
    object(world, "commit", format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nevil\n").as_bytes())
}

fn entry(mode: &'static str, name: impl AsRef<[u8]>, oid: &str) -> Raw {
    (mode, name.as_ref().to_vec(), oid.to_owned())
}

/// Returns the tree that has one more directory around `inner` for each name, the outermost first.
fn within(world: &World, names: &[Vec<u8>], inner: &str) -> String {
    let mut trees = Vec::new();
    let mut oid = inner.to_owned();
    for name in names.iter().rev() {
        trees.push(raw_tree(&[entry("40000", name, &oid)]));
        oid = object_id(ObjectKind::Tree, trees.last().unwrap()).unwrap().to_string();
    }
    objects(world, "tree", &trees).pop().unwrap_or(oid)
}

/// Describes all below `dir`: what a refused restore must leave as it is.
fn fingerprint(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let stat = path.symlink_metadata().unwrap();
        let is_ours = path != dir
            && (path.ends_with(".git")
                || path.ends_with("etc/git-devops")
                || path.ends_with("var/cache/git-devops")
                || path.ends_with("var/lib/git-devops"));
        if stat.is_dir() && !is_ours {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if stat.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let mtime = (!is_ours).then(|| (stat.mtime(), stat.mtime_nsec()));
        let shown = format!("{:o} {}:{} {mtime:?} {}", stat.mode(), stat.uid(), stat.gid(), content.escape_ascii());
        all.insert(path.as_os_str().as_bytes().escape_ascii().to_string(), shown);
    }
    all
}

/// Runs the program within 256 MiB of address space and checks the time.
fn bounded(world: &World, args: &[&str]) -> Run {
    let started = Instant::now();
    let run = world.gdo_limited(args);
    assert!(started.elapsed() < LONGEST, "{args:?} took {:?}", started.elapsed());
    run
}

/// Restores a commit of `tree` and expects the refusal `id`, with nothing written.
fn assert_refused(world: &World, what: &str, tree: &str, id: &str) {
    let before = fingerprint(&world.path(""));
    let commit = commit(world, tree);
    let run = bounded(world, &["--json", "restore", "--source", &commit]);
    assert_eq!(run.code, 65, "{what}: {}{}", run.out, run.err);
    assert!(run.out.contains(&format!("\"id\":\"{id}")), "{what}: {}{}", run.out, run.err);
    assert!(run.err.contains(&format!("refused: {id}")), "{what}: {}", run.err);
    assert_plain(&run);
    assert_eq!(fingerprint(&world.path("")), before, "{what}");
}

/// Restores a commit of `tree` and expects that to work.
fn assert_taken(world: &World, what: &str, tree: &str) {
    let commit = commit(world, tree);
    for args in [&["restore", "-n", "--source", &commit][..], &["restore", "--source", &commit]] {
        let run = bounded(world, args);
        assert_eq!(run.code, 0, "{what}: {}{}", run.out, run.err);
    }
}

/// Nothing that a terminal takes for more than text.
fn assert_plain(run: &Run) {
    for text in [&run.out, &run.err] {
        let bad = text.chars().find(|&c| {
            c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        });
        assert_eq!(bad, None, "{text:?}");
    }
}

/// A world with a file that every evil tree below would change, and the object that it would become.
fn world() -> (World, String) {
    let world = World::new();
    world.write("aaa", "live");
    world.snapshot();
    let blob = object(&world, "blob", b"evil");
    (world, blob)
}

#[test]
fn a_tree_with_names_that_lead_elsewhere_is_refused() {
    let (world, blob) = world();
    let empty = tree(&world, &[]);
    let names: &[(&[u8], &str)] = &[
        (b".git", "tree-name"),
        (b".GIT", "tree-name"),
        (b".git ", "tree-name"),
        (b".git.", "tree-name"),
        (b".git::$INDEX_ALLOCATION", "tree-name"),
        (b"git~1", "tree-name"),
        (".g\u{200c}it".as_bytes(), "tree-name"),
        (b"..", "tree-name"),
        (b".", "tree-name"),
        (b"", "tree-name"),
        (b"a/b", "tree-name"),
        (b"../../x", "tree-name"),
        (b"/etc", "tree-name"),
        (b".gitmodules", "tree-name"),
        (b".gitattributes", "tree-name"),
        (b"a\\.git", "tree-name"),
        (&[b'x'; 256], "name-too-long"),
        (&[b'x'; 510], "name-too-long"),
        (&[b'x'; 511], "name-too-long"),
        (&[b'x'; 70_000], "name-too-long"),
    ];
    for (name, id) in names {
        for (mode, oid) in [("100644", &blob), ("120000", &blob), ("40000", &empty)] {
            let mut entries = vec![entry("100644", "aaa", &blob), entry(mode, name, oid)];
            entries.sort_by(|a, b| a.1.cmp(&b.1));
            let what = format!("{mode} {}", name[..name.len().min(40)].escape_ascii());
            let evil = tree(&world, &entries);
            assert_refused(&world, &what, &evil, id);
            let deep = tree(&world, &[entry("100644", "aaa", &blob), entry("40000", "d", &evil)]);
            assert_refused(&world, &format!("{what}, below a directory"), &deep, id);
        }
    }
    for name in [&b"..."[..], b"git", b".gitignore", b"git~", b".gitx", b"-rf", b" ", b"\xff\xfe", &[b'x'; 255]] {
        assert_taken(&world, &name.escape_ascii().to_string(), &tree(&world, &[entry("100644", name, &blob)]));
    }
}

#[test]
fn a_tree_that_is_out_of_order_or_says_a_thing_twice_is_refused() {
    let (world, blob) = world();
    let sub = tree(&world, &[entry("100644", "x", &blob)]);
    let evil: &[(&str, Vec<Raw>)] = &[
        ("the same file twice", vec![entry("100644", "aaa", &blob), entry("100644", "aaa", &blob)]),
        ("a symlink and a directory", vec![entry("120000", "d", &blob), entry("40000", "d", &sub)]),
        (
            "a symlink and, after others, a directory",
            vec![entry("120000", "d", &blob), entry("100644", "d.x", &blob), entry("40000", "d", &sub)],
        ),
        ("unsorted", vec![entry("100644", "b", &blob), entry("100644", "aaa", &blob)]),
        ("a directory sorted as a file", vec![entry("40000", "d", &sub), entry("100644", "d.x", &blob)]),
    ];
    for (what, entries) in evil {
        assert_refused(&world, what, &tree(&world, entries), "tree-order");
    }
    let good = [entry("100644", "d.x", &blob), entry("40000", "d", &sub)];
    assert_taken(&world, "sorted", &tree(&world, &good));
}

#[test]
fn a_tree_of_other_kinds_of_entries_or_too_deep_is_refused() {
    let (world, blob) = world();
    let modes = [
        "160000", "100000", "104755", "102755", "100666", "100664", "60000", "20000", "10000", "140000", "170000", "777777",
        "120777",
    ];
    let unwritten = ["0", "", "0100644", "100648", "1000000", "99999999999999999999", "-1", "x"];
    for (mode, id) in modes.map(|mode| (mode, "mode")).into_iter().chain(unwritten.map(|mode| (mode, ""))) {
        let evil = tree(&world, &[entry("100644", "aaa", &blob), entry(mode, "x", &blob)]);
        assert_refused(&world, mode, &evil, id);
    }
    for (depth, is_good) in [(200, true), (2001, false), (5000, false)] {
        let inner = tree(&world, &[entry("100644", "x", &blob)]);
        let deep = within(&world, &vec![b"d".to_vec(); depth], &inner);
        match is_good {
            true => assert_taken(&world, &format!("{depth} deep"), &deep),
            false => assert_refused(&world, &format!("{depth} deep"), &deep, "tree-depth"),
        }
        world.sh("rm -rf d");
    }
    // Longer than any path that the kernel takes at once.
    let long = within(&world, &vec![vec![b'n'; 250]; 20], &tree(&world, &[entry("100644", "x", &blob)]));
    assert_taken(&world, "a path of 5020 bytes", &long);
}

#[test]
fn metadata_that_nobody_writes_is_refused() {
    let (world, blob) = world();
    let with = |text: &str| {
        let meta = object(&world, "blob", text.as_bytes());
        let leaf = tree(&world, &[entry("100644", ".m", &meta)]);
        let ours = tree(&world, &[entry("40000", "meta", &leaf)]);
        tree(&world, &[entry("40000", ".git-devops", &ours), entry("100644", "aaa", &blob)])
    };
    let lines = [
        "aaa uid=-1",
        "aaa uid=4294967295",
        "aaa uid=4294967296",
        "aaa uid=18446744073709551616",
        "aaa uid=01",
        "aaa gid=4294967295",
        "aaa user=nobody\nroot/0",
        "aaa user=x%0A/4294967295",
        "aaa user=/1",
        "aaa mode=10000",
        "aaa mode=0644",
        "aaa mode=644",
        "aaa type=char mode=0600 rdev=4096:0",
        "aaa type=char mode=0600 rdev=0:1048576",
        "aaa type=char mode=0600",
        "aaa type=dir",
        "aaa mtime=1.1000000000",
        "aaa holes=0+18446744073709551615",
        "aaa holes=9223372036854775807+1",
        "aaa holes=0+0",
        "aaa link=../../etc/shadow",
        "aaa link=/etc/shadow",
        "aaa link=",
        "aaa flags=none-such",
        "aaa unknown=1",
        "aaa uid=1 uid=1",
        "aaa gid=1 uid=1",
        "aaa  uid=1",
        "aaa uid=1\r",
        "../x uid=1",
        "a/b uid=1",
        "aaa uid=1\naaa uid=1",
        "bbb uid=1\naaa uid=1",
    ];
    for line in lines {
        let tree = with(&format!("git-devops metadata 1\n.\n{line}\n"));
        assert_refused(&world, line, &tree, "meta");
    }
    for (name, text) in [
        ("empty", ""),
        ("no end", "git-devops metadata 1\n."),
        ("nothing of the directory", "git-devops metadata 1\naaa uid=1\n"),
    ] {
        assert_refused(&world, name, &with(text), "meta");
    }
    let acl = format!("git-devops metadata 1\n.\naaa xattr.system.posix_acl_access:={}\n", "AAAA".repeat(200_000));
    assert_refused(&world, "an access list of 600,000 bytes", &with(&acl), "meta");
    // A user who is not there never becomes root.
    let run =
        bounded(&world, &["restore", "--source", &commit(&world, &with("git-devops metadata 1\n.\naaa user=no-such-user/0\n"))]);
    assert_eq!((run.code, world.read("aaa").as_str()), (65, "live"), "{}", run.err);
    assert!(run.err.contains("refused: meta: "), "{}", run.err);
    assert_taken(&world, "sound", &with("git-devops metadata 1\n.\naaa mode=0600\n"));
}

#[test]
fn a_chunk_index_that_lies_is_refused_and_its_file_stays() {
    let (world, _) = world();
    let (one, hash) = ("1".repeat(64), "2".repeat(64));
    let index = |size: &str, entries: &str, lines: &str| {
        let body = format!("size {size}\nblake3 {hash}\nchunker gear:min=16384,avg=65536,max=262144\nentries {entries}\n{lines}");
        format!("git-devops chunk-index 1\nroot {}\n{body}", ChunkId::of(body.as_bytes()))
    };
    let half = (1_u64 << 63).to_string();
    let cases: &[(&str, String)] = &[
        ("a count of 2^32-1", index("0", "4294967295", "")),
        ("a count of 2^64", index("0", "18446744073709551616", "")),
        ("one line too few", index("1", "2", &format!("chunk {one} 1\n"))),
        ("one line too many", index("2", "1", &format!("chunk {one} 1\nchunk {one} 1\n"))),
        ("a sum below the size", index("2", "1", &format!("chunk {one} 1\n"))),
        ("a sum above the size", index("0", "1", &format!("chunk {one} 1\n"))),
        ("a sum that wraps to the size", index("0", "2", &format!("hole {half}\nhole {half}\n"))),
        ("a sum that wraps", index("1", "2", &format!("hole {}\nchunk {one} 2\n", u64::MAX))),
        ("a length beyond 64 bits", index("1", "1", "hole 18446744073709551617\n")),
        ("a negative length", index("1", "1", "hole -1\n")),
        ("an empty chunk", index("0", "1", &format!("chunk {one} 0\n"))),
        ("an empty hole", index("0", "1", "hole 0\n")),
        ("a chunk of more than 16 MiB", index("16777217", "1", &format!("chunk {one} 16777217\n"))),
        ("an id of another hash", index("1", "1", &format!("chunk {} 1\n", "1".repeat(40)))),
        ("an unknown chunker", index("0", "0", "").replace("gear:", "magic:")),
        ("lists and chunks mixed", index("2", "2", &format!("list {one} 1 1\nchunk {one} 1\n"))),
        ("a changed body", index("0", "0", "").replace("size 0", "size 1")),
        ("another kind of line", index("1", "1", &format!("copy {one} 1\n"))),
        ("cut short", index("1", "1", &format!("chunk {one} 1"))),
    ];
    for (what, text) in cases {
        let blob = object(&world, "blob", text.as_bytes());
        let evil = commit(&world, &tree(&world, &[entry("100644", "aaa", &blob)]));
        let before = fingerprint(&world.path(""));
        for args in [&["restore", "--source", &evil][..], &["cat", &format!("{evil}:aaa")]] {
            let run = bounded(&world, args);
            if args[0] == "restore" {
                assert_eq!(run.code, 65, "{what}: {}{}", run.out, run.err);
                assert!(run.err.contains("refused: index: "), "{what}: {}", run.err);
            }
            assert_eq!(run.out.matches("live").count(), 0);
        }
        assert_eq!(fingerprint(&world.path("")), before, "{what}");
    }
    // Sound, but for a chunk that nobody has: that is no lie.
    let text = index("1", "1", &format!("chunk {one} 1\n"));
    let blob = object(&world, "blob", text.as_bytes());
    let run = bounded(&world, &["restore", "--source", &commit(&world, &tree(&world, &[entry("100644", "aaa", &blob)]))]);
    assert_eq!((run.code, world.read("aaa").as_str()), (3, "live"), "{}", run.err);
}

#[test]
fn a_system_keeps_its_symlinks_its_top_level_directories_and_what_is_ours() {
    let world = World::new();
    world.sh("mkdir -p ../sys/usr/bin ../sys/etc ../sys/var/cache; echo tool >../sys/usr/bin/tool; ln -s usr/bin ../sys/bin; echo web >../sys/etc/hostname");
    world.sh("gdo --root ../sys init --system; gdo --root ../sys snapshot -q .");
    world.sh("rm -rf .git; ln -s ../sys/etc/git-devops/repo .git"); // so that raw objects go there
    let blob = object(&world, "blob", b"evil");
    let file = tree(&world, &[entry("100644", "x", &blob)]);
    let at = |path: &str| within(&world, &path.split('/').map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>(), &file);
    let one = |mode: &'static str, name: &str| tree(&world, &[entry(mode, name, &blob)]);
    let cases = [
        ("a directory for /bin", at("bin"), "type-change-protected"),
        ("a symlink for /etc", one("120000", "etc"), "type-change-protected"),
        ("a file for /usr", one("100644", "usr"), "type-change-protected"),
        ("into the repository", at("etc/git-devops/repo/hooks"), "path-denied"),
        ("trust", at("etc/git-devops/trust"), "path-denied"),
        ("state", at("var/lib/git-devops"), "path-denied"),
        ("the store", at("var/cache/git-devops/packs/00"), "path-denied"),
    ];
    for (what, tree, id) in &cases {
        let evil = commit(&world, tree);
        let before = fingerprint(&world.path("../sys"));
        for extra in [&[][..], &["-n"]] {
            let args = [&["--root", "../sys", "--json", "restore", "--source", &evil][..], extra].concat();
            let run = bounded(&world, &args);
            assert_eq!(run.code, 65, "{what}: {}{}", run.out, run.err);
            assert!(run.out.contains(&format!("\"id\":\"{id}\"")), "{what}: {}", run.out);
        }
        assert_eq!(fingerprint(&world.path("../sys")), before, "{what}");
    }
    // What only looks like it is taken, and so is a protected change that somebody asked for by name.
    let near = commit(&world, &at("etc/git-devops-docs"));
    assert_eq!(bounded(&world, &["--root", "../sys", "restore", "--source", &near, "etc/git-devops-docs"]).code, 0);
    let bin = commit(&world, &at("bin"));
    assert_eq!(bounded(&world, &["--root", "../sys", "restore", "--allow-type-change", "--source", &bin, "bin"]).code, 0);
    assert_eq!(world.read("../sys/bin/x"), "evil");
    // Nothing is ever written into what the kernel makes up.
    let run = bounded(&world, &["--root", "../sys", "--json", "restore", "--source", &near, "--target", "/proc"]);
    assert!(run.code == 65 && run.out.contains("path-denied"), "{}{}", run.out, run.err);
}

#[test]
fn a_work_tree_keeps_its_own_repository() {
    let (world, blob) = world();
    let file = tree(&world, &[entry("100644", "HEAD", &blob)]);
    let alt = within(&world, &[b"alt".to_vec(), b"%2egit".to_vec()], &file);
    let evil = tree(&world, &[entry("40000", ".git-devops", &alt), entry("100644", "aaa", &blob)]);
    let head = world.read(".git/HEAD");
    assert_refused(&world, "into .git", &evil, "path-denied");
    assert_eq!(world.read(".git/HEAD"), head);
}

#[test]
fn what_is_in_the_way_is_replaced_and_what_it_was_linked_to_stays() {
    let (world, blob) = world();
    let good = commit(&world, &tree(&world, &[entry("100644", "aaa", &blob)]));
    let is_root = world.sh("id -u").trim() == "0";
    let can_pin = is_root && world.sh("touch i; chattr +i i 2>/dev/null && chattr -i i && echo yes; rm -f i").trim() == "yes";
    let mut ways = vec!["echo private >../victim; chmod 600 ../victim; ln ../victim aaa", "mkfifo aaa", "ln -s ../victim aaa"];
    if is_root {
        ways.push("mknod aaa c 1 3 2>/dev/null || mkfifo aaa");
    }
    if can_pin {
        ways.push("echo old >aaa; chattr +i aaa");
    }
    for way in ways {
        world.sh(&format!("rm -rf aaa ../victim; echo private >../victim; {way}"));
        let before = world.sh("stat -c '%a %U %Y %s' ../victim; cat ../victim");
        let run = bounded(&world, &["restore", "--source", &good]);
        assert_eq!((run.code, world.read("aaa").as_str()), (0, "evil"), "{way}: {}", run.err);
        assert!(world.path("aaa").symlink_metadata().unwrap().is_file());
        assert_eq!(world.sh("stat -c '%a %U %Y %s' ../victim; cat ../victim"), before, "{way}");
    }
}

#[test]
fn a_symlink_that_somebody_planted_on_the_way_to_a_target_is_not_followed() {
    let (world, blob) = world();
    let good = commit(&world, &tree(&world, &[entry("100644", "aaa", &blob)]));
    world.sh("mkdir ../open ../victim; ln -s ../victim ../open/link; chmod 777 ../open");
    for target in ["../open/link", "../open/link/new", "../open/link/new/deeper"] {
        for args in [&["restore", "-n"][..], &["restore"]] {
            let run = bounded(&world, &[args, &["--source", &good, "--target", target]].concat());
            assert_eq!(run.code, 65, "{target}: {}", run.err);
            assert!(
                run.err.contains("refused: symlink-untrusted: ") && run.err.contains("name the directory itself"),
                "{}",
                run.err
            );
        }
    }
    assert_eq!(world.sh("ls -A ../victim"), "");
    world.ok(&["restore", "--source", &good, "--target", "../open/new"]);
    world.sh("chmod 755 ../open");
    world.ok(&["restore", "--source", &good, "--target", "../open/link/new/deeper"]);
    assert_eq!(world.read("../victim/new/deeper/aaa"), "evil");
}

#[test]
fn no_name_does_anything_to_a_terminal() {
    let world = World::new();
    world.write("plain", "x");
    world.snapshot();
    let names: [&[u8]; 8] = [
        b"line\nend",
        b"\x1b]0;title\x07",
        b"back\rward",
        "\u{202e}gpj.exe".as_bytes(),
        b"\xff\xfe",
        b"-rf",
        b"blank ",
        "\u{9b}31m".as_bytes(),
    ];
    for name in names {
        std::fs::write(world.path("").join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    for args in [
        &["status"][..],
        &["snapshot"],
        &["ls"],
        &["show"],
        &["show", "--stat"],
        &["log", "--name-status"],
        &["diff", "HEAD~", "HEAD"],
        &["restore", "-v", "--target", "../copy"],
        &["restore", "-n", "--target", "../copy"],
    ] {
        let run = world.gdo(args);
        assert!(matches!(run.code, 0 | 2), "{args:?}: {}", run.err);
        assert_plain(&run);
    }
    for name in names {
        assert!(world.path("../copy").join(std::ffi::OsStr::from_bytes(name)).exists(), "{}", name.escape_ascii());
    }
    for text in ["no\x1b[31mthing", "no\u{202e}thing"] {
        assert_plain(&world.gdo(&["restore", "--source", text]));
        assert_plain(&world.gdo(&["restore", text]));
    }
}

#[test]
fn nothing_around_a_run_makes_it_do_something_else() {
    let (world, _) = world();
    world.sh("printf '#!/bin/sh\\ntouch ../pwned\\nexit 1\\n' >git; chmod +x git; cp git ls; cp git sh");
    let hostile = [
        "PATH=.:$PATH",
        "GIT_SSH_COMMAND='touch ../pwned'",
        "GIT_EXTERNAL_DIFF='touch ../pwned'",
        "GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.fsmonitor GIT_CONFIG_VALUE_0='touch ../pwned'",
        "GIT_CONFIG_PARAMETERS=\"'core.fsmonitor=touch ../pwned'\"",
        "GIT_EXEC_PATH=.",
        "GIT_TEMPLATE_DIR=. GIT_OBJECT_DIRECTORY=/nonexistent GIT_INDEX_FILE=/nonexistent GIT_NAMESPACE=x",
        "IFS=it PAGER='touch ../pwned' EDITOR='touch ../pwned' HOME=.",
        "TMPDIR=/nonexistent",
    ];
    for (at, environment) in hostile.iter().enumerate() {
        world.sh(&format!(
            "g=$(command -v gdo); echo {at} >aaa; {environment} $g snapshot -q; {environment} $g status; {environment} $g check"
        ));
        assert!(!world.exists("../pwned"), "{environment}");
    }
    // A library that is forced on us is not passed on to git.
    world.sh("cat >../forced.c <<'END'
         #include <stdio.h>
         __attribute__((constructor)) static void note(void) {
             char name[64] = \"\";
             FILE *comm = fopen(\"/proc/self/comm\", \"r\"), *log = fopen(LOG, \"a\");
             if (comm && log && fgets(name, sizeof name, comm)) fputs(name, log);
         }
END
         cc -shared -fPIC -DLOG=\"\\\"$(cd ..; pwd)/log\\\"\" -o ../forced.so ../forced.c");
    world.sh("echo forced >aaa; g=$(command -v gdo); LD_PRELOAD=../forced.so $g snapshot -q; LD_PRELOAD=../forced.so $g check");
    assert_eq!(world.sh("sort -u ../log").trim(), "gdo");
    // Closed streams, and a umask that gives everything away.
    world.sh("umask 000; echo closed >aaa; gdo snapshot -q <&- >&- 2>&-; gdo restore -q --target ../copy <&- 2>&-");
    let open = world.sh("find .git -perm /077 -not -type l | head -3; find .git/objects/pack .git/devops -perm /022");
    let open: Vec<&str> =
        open.lines().filter(|path| !path.contains("/objects/") && !path.contains("packs/") && !path.contains("FORMAT")).collect();
    assert!(open.iter().all(|path| path.contains("format")), "{open:?}");
    // A repository that would run something is refused before git sees it.
    world.sh(
        "mkdir -p ../evil; cp -a .git ../evil/.git; printf '[core]\\n\\tfsmonitor = touch ../pwned\\n' >>../evil/.git/config",
    );
    for how in ["cd ../evil; gdo status", "GIT_DIR=../evil/.git gdo status", "gdo --git-dir ../evil/.git status"] {
        let code = world.sh(&format!("set +e; ({how}) >/dev/null 2>&1; echo $?"));
        assert_eq!((code.trim(), world.exists("../pwned")), ("65", false), "{how}");
    }
    // Where no file may grow, nothing that was stored is lost.
    let before = world.ok(&["git", "rev-parse", "HEAD"]);
    world.write("aaa", "more");
    let told = world.sh("(ulimit -f 0; gdo snapshot -q) 2>&1 && echo fine || echo \"code $?\"");
    assert!(told.contains("code 5") && told.contains("cannot write") && told.contains("file too large"), "{told}");
    assert_eq!(world.ok(&["git", "rev-parse", "HEAD"]), before);
    world.ok(&["snapshot", "-q"]);
    world.ok(&["check", "--data"]);
}
