//! What `gdo restore` does to files that are already there.

mod common;

use common::World;

#[test]
fn one_member_of_a_link_group_gets_its_own_stored_content() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.snapshot();
    world.write("a", "changed"); // and with it b
    world.ok(&["restore", "b"]);
    assert_eq!((world.read("a").as_str(), world.read("b").as_str()), ("changed", "stored"));
    // The name that leads the group may be something else altogether in another target.
    world.write("../target/a", "foreign");
    world.ok(&["restore", "--target", "../target", "b"]);
    assert_eq!((world.read("../target/a").as_str(), world.read("../target/b").as_str()), ("foreign", "stored"));
}

#[test]
fn a_part_of_a_link_group_that_is_right_stays_linked() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.link("a", "c");
    world.snapshot();
    for part in [&["restore", "a"][..], &["restore", "b"], &["restore", "b", "c"]] {
        world.ok(part);
        assert_eq!((world.inode("a"), world.inode("a")), (world.inode("b"), world.inode("c")), "{part:?}");
    }
    std::fs::remove_file(world.path("b")).unwrap();
    world.ok(&["restore", "b"]);
    assert_eq!(world.inode("a"), world.inode("b"));
}

#[test]
fn a_member_of_a_link_group_that_was_edited_in_a_plain_clone_keeps_the_edit() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.link("a", "c");
    world.snapshot();
    world.sh("git clone -q .git ../clone && cd ../clone && echo edit >b && git commit -qam edit && git push -q origin HEAD:refs/heads/edit");
    world.ok(&["restore", "--source", "edit", "--target", "../target"]);
    assert_eq!((world.read("../target/a").as_str(), world.read("../target/b").as_str()), ("stored", "edit\n"));
    assert_eq!(world.inode("../target/a"), world.inode("../target/c"));
}

#[test]
fn a_file_and_a_directory_change_places() {
    let world = World::new();
    let versions =
        [("file", "echo 1 >x"), ("empty", "mkdir x"), ("full", "mkdir -p x/d; echo 1 >x/f; echo 1 >x/d/f"), ("node", "mkfifo x")];
    for (name, make) in versions {
        world.sh(&format!("rm -rf x; {make}; gdo snapshot -q -m {name}; gdo git branch {name}"));
    }
    for from in versions.map(|(name, _)| name) {
        for to in versions.map(|(name, _)| name) {
            world.sh(&format!(
                "gdo restore -q --source {from}; gdo snapshot -q; gdo restore -n --source {to}; gdo restore -q --source {to}"
            ));
            let want =
                ["regular file", "directory", "directory", "fifo"][versions.iter().position(|(name, _)| *name == to).unwrap()];
            assert!(world.sh("stat -c %F x").starts_with(want), "{from} to {to}");
            assert_eq!(world.ok(&["diff", to]), "", "{from} to {to}");
            world.snapshot();
        }
    }
}

#[test]
fn a_directory_has_its_time_also_where_a_file_was_removed() {
    let world = World::new();
    world.sh("mkdir d; echo 1 >d/a; touch -d 2001-01-01 d; gdo snapshot -q; echo 2 >d/b; gdo snapshot -q");
    world.ok(&["restore", "--source", "HEAD~1"]);
    assert!(!world.exists("d/b"));
    assert!(world.sh("stat -c %y d").starts_with("2001-01-01"));
}

#[test]
fn what_took_the_place_of_an_owned_directory_is_not_removed() {
    let world = World::new();
    world.sh("echo 1 >f; gdo snapshot -q; mkdir d; gdo snapshot -q; rmdir d; echo precious >d");
    world.ok(&["restore", "--source", "HEAD~1"]);
    assert_eq!(world.read("d"), "precious\n");
}

#[test]
fn a_directory_that_is_made_gets_its_own_mode() {
    let world = World::new();
    world.write("etc/app/conf", "1");
    world.sh("chmod 750 etc; chmod 711 etc/app; gdo snapshot -q; rm -r etc");
    world.ok(&["restore", "etc/app/conf"]);
    assert_eq!((world.mode("etc"), world.mode("etc/app")), (0o750, 0o711));
    // One that is there is not asked for, and left alone.
    world.sh("chmod 700 etc");
    world.ok(&["restore", "etc/app/conf"]);
    assert_eq!(world.mode("etc"), 0o700);
}

#[test]
fn a_tree_from_a_plain_clone_gets_the_modes_that_git_knows() {
    let world = World::new();
    world.write("a", "1");
    world.snapshot();
    world.sh("git clone -q .git ../clone; cd ../clone; mkdir n; echo 1 >n/f; git add n; git commit -qm n; git push -q origin HEAD:refs/heads/n");
    world.ok(&["restore", "--source", "n"]);
    assert_eq!((world.mode("n"), world.mode("n/f")), (0o755, 0o644));
}

#[test]
fn few_directories_are_open_at_once() {
    let world = World::new();
    world.sh("git config --file .git/config devops.threads 2");
    world.sh("for i in $(seq 1500); do mkdir -p d/$i; echo 1 >d/$i/f; done; gdo snapshot -q");
    world.sh("ulimit -n 1000; gdo restore -q --target ../target");
    assert_eq!(world.sh("ls ../target/d/*/f | wc -l").trim(), "1500");
}

#[test]
fn what_cannot_be_restored_is_named_before_anything_is_written_and_the_rest_is_restored_by_name() {
    let world = World::new();
    world.write("a", "1");
    world.write("d/f", "1");
    world.snapshot();
    // A submodule at the top, and a directory that says nothing valid about itself.
    world.sh(
        "bad=$(echo bad | gdo git hash-object -w --stdin); \
         leaf=$(gdo git ls-tree HEAD:.git-devops/meta/d | sed 's/ [0-9a-f]*\\t/ '$bad'\\t/' | gdo git mktree); \
         meta=$(gdo git ls-tree HEAD:.git-devops/meta | sed '/\\td$/s/ [0-9a-f]*\\t/ '$leaf'\\t/' | gdo git mktree); \
         ours=$(gdo git ls-tree HEAD:.git-devops | sed '/\\tmeta$/s/ [0-9a-f]*\\t/ '$meta'\\t/' | gdo git mktree); \
         sub=$(gdo git rev-parse HEAD); \
         tree=$( (gdo git ls-tree HEAD | sed '/\\t.git-devops$/s/ [0-9a-f]*\\t/ '$ours'\\t/'; printf '160000 commit %s\\tsub\\n' $sub) | gdo git mktree --missing); \
         gdo git update-ref refs/heads/odd $(GIT_DIR=.git git commit-tree -m odd $tree)",
    );
    let run = world.gdo(&["restore", "--source", "odd", "--target", "../target"]);
    assert_eq!((run.code, world.exists("../target/a")), (65, false), "{}", run.err);
    assert!(run.err.contains("refused: meta: nothing was written: cannot read stored directory 'd'"), "{}", run.err);
    world.ok(&["restore", "--source", "odd", "--target", "../target", "a"]);
    assert_eq!(world.read("../target/a"), "1");
}
