//! Upkeep that makes a repository smaller.

use std::path::PathBuf;

use serde_json::Value;

use crate::common::World;

/// Returns how many bytes the files below `dir` that end in `end` have, and how many there are.
fn size(world: &World, dir: &str, end: &str) -> (u64, usize) {
    let found = world.sh(&format!("find {dir} -name '*{end}' -type f -printf '%s\\n'"));
    let sizes: Vec<u64> = found.lines().map(|line| line.parse().unwrap()).collect();
    (sizes.iter().sum(), sizes.len())
}

fn maintain(world: &World, args: &[&str]) -> Value {
    serde_json::from_str(&world.ok(&[&["maintain", "--json"], args].concat())).unwrap()
}

const CHUNKS: &str = ".git/devops/store/packs";
const OBJECTS: &str = ".git/objects/pack";

#[test]
fn what_is_stored_gets_smaller_and_stays_all_there() {
    let world = World::new();
    let mut versions = Vec::new();
    for at in 0..4 {
        world.sh(&format!(
            "seq -f 'line %g of a large file' {at} 100000 >large; for n in $(seq 30); do seq $n $((900 + {at})) >small$n; done"
        ));
        world.snapshot();
        versions.push([world.read("large"), world.read("small7")]);
    }
    let lost = world.sh("echo 'nothing refers to this' | git hash-object -w --stdin");
    world.sh("echo 'staged alone' >staged; git --git-dir .git --work-tree . add staged");
    world.sh(&format!("(echo {}; git rev-parse :staged) | git pack-objects -q {OBJECTS}/pack; git prune-packed", lost.trim()));
    world.sh("git multi-pack-index write");
    let before = [size(&world, CHUNKS, ".pack"), size(&world, OBJECTS, ".pack")];
    let told = maintain(&world, &["-n"]);
    assert_eq!((told["repacked"].as_bool(), told["left_packs"].as_u64(), told["packs"].as_u64()), (Some(true), Some(4), Some(0)));
    assert_eq!(before, [size(&world, CHUNKS, ".pack"), size(&world, OBJECTS, ".pack")], "it was only told");
    let told = maintain(&world, &[]);
    let after = [size(&world, CHUNKS, ".pack"), size(&world, OBJECTS, ".pack")];
    assert!(after[0].0 < before[0].0 * 9 / 10 && after[1].0 < before[1].0 / 2, "{before:?} {after:?}");
    assert_eq!((after[0].1, after[1].1), (1, 1), "packs are put together");
    assert_eq!((told["chunk_bytes_after"].as_u64(), told["chunk_bytes_before"].as_u64()), (Some(after[0].0), Some(before[0].0)));
    assert_eq!((told["git_bytes_after"].as_u64(), told["cut_short"].is_null()), (Some(after[1].0), true));
    for (back, [large, small]) in versions.iter().rev().enumerate() {
        assert_eq!(world.ok(&["cat", &format!("HEAD~{back}:large")]), *large);
        assert_eq!(world.ok(&["cat", &format!("HEAD~{back}:small7")]), *small);
    }
    assert_eq!(world.sh(&format!("git cat-file -p {lost}")), "nothing refers to this\n");
    assert_eq!(world.sh("git cat-file -p :staged"), "staged alone\n");
    world.ok(&["check", "--data"]);
    world.sh("git fsck --strict; ! ls -A .git/objects/pack | grep multi-pack-index");
    // Once more there is nothing to do, until there is something new.
    let told = maintain(&world, &[]);
    assert_eq!((told["repacked"].as_bool(), told["packs"].as_u64()), (Some(false), Some(0)));
    world.sh("seq 7 100007 >other");
    world.snapshot();
    assert_eq!(maintain(&world, &["--minutes", "0"])["cut_short"], "time");
    assert_eq!(maintain(&world, &[])["packs"].as_u64(), Some(1));
    world.ok(&["gc", "--prune", "now"]);
    world.ok(&["check", "--data"]);
}

#[test]
fn commits_do_not_pile_up_as_packs() {
    let world = World::new();
    for at in 0..110 {
        world.write("changed", &format!("{at}\n"));
        world.snapshot();
    }
    let (_, n_packs) = size(&world, OBJECTS, ".pack");
    assert!(n_packs < 60, "{n_packs} packs of 110 commits");
    for back in [0, 1, 50, 109] {
        assert_eq!(world.ok(&["cat", &format!("HEAD~{back}:changed")]), format!("{}\n", 109 - back));
    }
    world.ok(&["check"]);
    world.sh("git fsck --strict");
}

#[test]
fn an_index_of_git_that_names_what_is_no_file_is_told_of() {
    let world = World::new();
    world.write("small", "x\n");
    world.snapshot();
    world.ok(&["check", "--data"]);
    world.sh("git update-index --add --cacheinfo 100644,$(git rev-parse HEAD),odd");
    let told = world.gdo(&["check"]);
    assert!(told.code == 8 && told.out.contains("is a commit, not a blob"), "{}{}", told.out, told.err);
}

#[test]
fn a_commit_graph_of_another_history_is_told_of() {
    let [world, other] = ["x\n", "y\n"].map(|content| {
        let world = World::new();
        world.write("small", content);
        world.snapshot();
        world.sh("git commit-graph write --reachable");
        world.ok(&["check", "--data"]);
        world
    });
    const GRAPH: &str = ".git/objects/info/commit-graph";
    std::fs::copy(other.path(GRAPH), world.path("graph")).unwrap();
    world.sh(&format!("mv -f graph {GRAPH}"));
    let told = world.gdo(&["check", "--data"]);
    assert!(told.code == 8 && told.out.contains("git commit-graph verify: "), "{}{}", told.out, told.err);
    world.ok(&["check", "--repair"]);
    world.ok(&["check", "--data"]);
    assert!(!world.exists(GRAPH));
    world.sh("git commit-graph write --reachable");
    world.ok(&["git", "gc", "--quiet"]);
    assert!(!world.exists(GRAPH), "it may have commits that are gone");
}

#[test]
fn a_commit_graph_that_leads_away_from_commits_takes_nothing_from_them() {
    let world = World::new();
    for content in ["1\n", "2\n", "3\n"] {
        world.write("small", content);
        world.snapshot();
    }
    world.sh("git commit-graph write --reachable; git reflog expire --expire=now --all");
    // The newest commit, of the three in it, is said to have no parents. Its entry: two trees before, then the tree, and from byte 20 on two parents.
    world.sh(r#"f=.git/objects/info/commit-graph; chmod 644 $f; python3 -c "
import struct, subprocess
graph = open('$f', 'rb').read()
tree = bytes.fromhex(subprocess.check_output(['git', 'rev-parse', 'HEAD^{tree}'], text=True))
at = graph.index(tree) + 20
assert struct.unpack_from('>I', graph, at)[0] < 3
open('$f', 'wb').write(graph[:at] + struct.pack('>I', 0x70000000) + graph[at + 4:])
""#);
    assert_eq!(world.sh("git rev-list --count HEAD"), "1\n", "stock git believes it");
    assert_eq!(world.ok(&["git", "rev-list", "--count", "HEAD"]), "3\n");
    assert!(world.gdo(&["check"]).out.contains("commit-graph"));
    world.ok(&["gc", "--prune", "now"]);
    assert_eq!(world.sh("git rev-list --count HEAD"), "3\n");
    world.ok(&["check", "--data"]);
    assert_eq!(world.ok(&["cat", "HEAD~2:small"]), "1\n");
}

#[test]
fn an_index_of_several_packs_that_leads_to_another_object_is_not_followed() {
    let world = World::new();
    world.write("a", "1\n");
    world.write("b", "2\n");
    world.snapshot();
    world.sh("git multi-pack-index write");
    // The first of the two blobs is said to lie where the second does. The chunks' table begins at byte 12: a name of four bytes, and where it starts.
    world.sh(r#"f=.git/objects/pack/multi-pack-index; chmod 644 $f; python3 -c "
import struct, subprocess
index = bytearray(open('$f', 'rb').read())
chunks = {bytes(index[at:at + 4]): struct.unpack_from('>Q', index, at + 4)[0] for at in range(12, 12 + 12 * index[6], 12)}
def entry(path):
    name = bytes.fromhex(subprocess.check_output(['git', 'rev-parse', 'HEAD:' + path], text=True))
    return chunks[b'OOFF'] + 8 * ((index.index(name, chunks[b'OIDL']) - chunks[b'OIDL']) // 20)
a, b = entry('a'), entry('b')
index[a:a + 8] = index[b:b + 8]
open('$f', 'wb').write(index)
""#);
    assert_eq!(world.sh("git cat-file blob HEAD:a"), "2\n", "stock git believes it");
    assert_eq!(world.ok(&["git", "cat-file", "blob", "HEAD:a"]), "1\n");
    assert!(world.gdo(&["check"]).out.contains("multi-pack-index"));
    world.write("c", "3\n");
    world.snapshot();
    world.ok(&["gc", "--prune", "now"]);
    assert!(!world.exists(".git/objects/pack/multi-pack-index"));
    world.ok(&["check", "--data"]);
    assert_eq!(world.ok(&["cat", "HEAD:a"]), "1\n");
}

#[test]
fn what_was_verified_is_read_and_hashed_and_not_unpacked_again() {
    let world = World::new();
    world.sh("seq 100000 >large; seq 10 >small");
    world.snapshot();
    let check =
        |args: &[&str]| -> Value { serde_json::from_str(&world.gdo(&[&["check", "--json"], args].concat()).out).unwrap() };
    let bytes = |args: &[&str]| {
        let told = check(args);
        assert_eq!(told["findings"], serde_json::json!([]));
        [told["bytes_fresh"].as_u64().unwrap(), told["bytes_same"].as_u64().unwrap()]
    };
    let [all, none] = bytes(&["--data"]);
    assert!(all > 1000 && none == 0);
    assert_eq!(bytes(&["--data"]), [0, all]);
    assert_eq!(bytes(&["--data", "--fresh"]), [all, 0]);
    assert!(world.ok(&["check", "--data"]).starts_with("all data is intact: 0 B verified, "));
    // What is new is verified, the rest is the same; after a maintenance all is new.
    world.sh("seq 7 100007 >other; seq 12 >small");
    world.snapshot();
    let [fresh, same] = bytes(&["--data"]);
    assert!(fresh > 1000 && same == all);
    assert_eq!(bytes(&["--data"]), [0, fresh + same]);
    world.ok(&["maintain"]);
    let [fresh, same] = bytes(&["--data"]);
    assert!(fresh > 1000 && same == 0);
    // Every kind of pack that rots is found, though the note has it; and so it is when it is sound again.
    let flip = |file: &str, at: u64| {
        world.sh(&format!(
            "f=$(ls -S {file} | head -1); chmod 644 $f; python3 -c \"f = open('$f', 'r+b'); f.seek({at}); b = f.read(1)[0]; f.seek({at}); f.write(bytes([b ^ 1]))\""
        ));
    };
    for file in [".git/devops/store/packs/*/*.pack", ".git/objects/pack/*.pack", ".git/objects/pack/*.idx"] {
        for at in [2, 100, 1100] {
            flip(file, at);
            for args in [&["check", "--data"][..], &["check", "--data", "--fresh"], &["check", "--data"]] {
                let told = world.gdo(args);
                assert!(told.code == 8 && told.out.contains("pack"), "{file} {at} {args:?}: {}", told.out);
            }
            flip(file, at);
            world.ok(&["check", "--data"]);
        }
    }
    assert_eq!(bytes(&["--data"]), [0, fresh]);
    // The note itself may rot, be that of somebody else, or be lost.
    let note = ".git/devops/state/verified";
    flip(note, 50);
    assert_eq!(bytes(&["--data"]), [fresh, 0]);
    world.sh(&format!("cp {note} ../kept; rm {note}"));
    assert_eq!(bytes(&["--data"]), [fresh, 0]);
    world.sh(&format!("rm {note}; mkdir {note}"));
    assert_eq!(bytes(&["--data"]), [fresh, 0], "where it cannot be written, it is left out");
    world.sh(&format!("rmdir {note}; cp ../kept {note}; chmod 0 {note}"));
    flip(".git/devops/store/packs/*/*.pack", 200);
    assert_eq!(world.gdo(&["check", "--data"]).code, 8);
    flip(".git/devops/store/packs/*/*.pack", 200);
    world.ok(&["check", "--data"]);
}

#[test]
fn a_pack_is_findable_after_its_name_is_durable_whoever_indexes_it() {
    for verb in ["gdo check", "gdo gc --prune=now", "gdo snapshot -q"] {
        let world = World::new();
        let store = world.path(".git/devops/store");
        world.sh("head -c 300000 /dev/urandom >other && gdo snapshot -q && cp .git/devops/store/index/list ../list");
        world.sh("head -c 300000 /dev/urandom >large && gdo snapshot -q");
        // As if the second writer had been killed before it listed its pack; a file it left has the next one look for such packs.
        world.sh("cp ../list .git/devops/store/index/list && touch .git/devops/store/tmp/left");
        let packs = world.sh("cd .git/devops/store/packs && find -name '*.pack' -printf '%h ' | tr -d ./");
        let dirs: Vec<PathBuf> = packs.split_whitespace().map(|dir| store.join("packs").join(dir)).collect();
        world.sh(&format!("strace -f -y -o ../trace -e trace=fsync,rename,renameat,renameat2 {verb}"));
        let trace = world.read("../trace");
        let line = |of: &str| trace.lines().position(|line| line.contains(of));
        let listed = line("/index/list\"").unwrap_or_else(|| panic!("{verb} listed nothing: {trace}"));
        let is_synced = |dir: &PathBuf| line(&format!("<{}>", dir.display())).is_some_and(|at| at < listed);
        assert!(dirs.iter().any(is_synced), "{verb}: {trace}");
    }
}
