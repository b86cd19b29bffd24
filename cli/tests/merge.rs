//! Merging branches on trees, as `gdo git merge-tree` does.

use crate::common::World;

/// Makes the branches `one` and `other`, which start from what there is now and go on with a shell script each.
fn branches(world: &World, one: &str, other: &str) {
    world.sh(&format!(
        "gdo snapshot -q; base=$(gdo git rev-parse HEAD); \
         for side in one other; do \
         if test $side = one; then {one}; else {other}; fi; gdo snapshot -q; \
         gdo git update-ref refs/heads/$side $(git --git-dir .git commit-tree -p $base -m $side $(gdo git rev-parse HEAD^{{tree}})); \
         gdo restore -q --source $base; done"
    ));
}

/// Merges both; returns how that ended, and the tree that came of it.
fn merge(world: &World, options: &[&str]) -> (i32, String) {
    let run = world.gdo(&[&["git", "merge-tree", "--write-tree"], options, &["one", "other"]].concat());
    (run.code, run.out.lines().next().unwrap_or_default().to_owned())
}

/// Returns a commit of a tree.
fn commit(world: &World, tree: &str) -> String {
    world.sh(&format!("git --git-dir .git commit-tree -m merged {tree}")).trim().to_owned()
}

#[test]
fn metadata_of_neighbours_and_different_keys_of_one_entry_merge() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.write(name, "1");
    }
    world.sh("touch -d 2001-01-01 a b c");
    branches(&world, "chmod 600 a b", "chmod 640 c; touch -d 2002-02-02 b");
    let (code, tree) = merge(&world, &[]);
    assert_eq!(code, 0);
    world.ok(&["restore", "--source", &commit(&world, &tree), "--target", "../target"]);
    let found = world.sh("cd ../target; stat -c '%n %a %y' a b c | cut -c1-16");
    assert_eq!(found, "a 600 2001-01-01\nb 600 2002-02-02\nc 640 2001-01-01\n");
    // Without our driver, which the repository's attributes select, git joins lines.
    world.write(".git/info/attributes", "");
    assert_eq!(merge(&world, &[]).0, 1);
}

#[test]
fn a_conflict_in_metadata_is_named_and_cannot_be_restored() {
    let world = World::new();
    world.write("a", "1");
    world.write("b", "1");
    branches(&world, "chmod 600 a", "chmod 640 a");
    let run = world.gdo(&["git", "merge-tree", "--write-tree", "one", "other"]);
    assert!(run.code == 1 && run.err.contains("conflict in the metadata of 'a'"), "{}{}", run.out, run.err);
    let merged = commit(&world, run.out.lines().next().unwrap());
    assert_eq!(world.gdo(&["restore", "--source", &merged, "--target", "../target"]).code, 65);
}

#[test]
fn two_versions_of_a_large_file_never_merge() {
    let world = World::new();
    world.sh("head -c 1000000 /dev/urandom >large");
    let change = |at: &str| format!("printf changed | dd of=large bs=1 seek={at} conv=notrunc status=none");
    branches(&world, &change("1000"), &change("900000"));
    assert_eq!(merge(&world, &[]).0, 1);
    // Where a person tells git to prefer one side, line by line, what comes out is no chunk index.
    let preferred = merge(&world, &["-X", "theirs"]).1;
    let run = world.gdo(&["restore", "--source", &commit(&world, &preferred), "--target", "../target"]);
    assert!(run.code == 65 && !world.exists("../target/large"), "{} {}", run.code, run.err);
}
