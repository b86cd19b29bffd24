//! What `gdo restore` does to files that are already there.

use crate::common::World;

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
    world.sh("for i in $(seq 500); do mkdir -p d/$i; echo 1 >d/$i/f; done; head -c 1000000 /dev/urandom >large");
    world.sh("ulimit -n 64; gdo snapshot -q");
    for limit in [64, 128] {
        world.sh(&format!("rm -rf ../target; ulimit -n {limit}; gdo restore -q --target ../target"));
        assert_eq!(world.sh("ls ../target/d/*/f | wc -l").trim(), "500");
    }
}

#[test]
fn a_link_group_with_a_foreign_name_in_the_place_of_its_own_is_made_anew() {
    let world = World::new();
    world.write("a", "stored");
    world.link("a", "b");
    world.snapshot();
    world.sh("rm b; cp -p a b; ln a ../foreign"); // two names, as recorded, but not those two
    assert_eq!(world.ok(&["restore", "-qn"]), "metadata .\nreplace a\nreplace b\n");
    world.ok(&["restore"]);
    assert_eq!(world.inode("a"), world.inode("b"));
    assert_ne!(world.inode("a"), world.inode("../foreign"));
    assert_eq!(world.ok(&["restore", "-qn"]), "");
}

/// Says whether inode flags can be set here, which needs root and a filesystem that has them.
fn can_lock(world: &World) -> bool {
    world.sh("mkdir -p ../probe; chattr +i ../probe 2>/dev/null && chattr -i ../probe && echo yes || echo no").trim() == "yes"
}

#[test]
fn what_is_below_a_locked_directory_is_restored_and_the_directory_locked_again() {
    let world = World::new();
    if !can_lock(&world) {
        eprintln!("no inode flags here: locked directories are NOT covered");
        return;
    }
    world.sh("mkdir -p i/d a; echo 1 >i/f; ln i/f i/l; echo 1 >i/d/f; echo 1 >a/f; echo 1 >free; chattr +i i/f; chattr +i i; chattr +a a; gdo snapshot -q");
    let unlock = "chattr -R -i -a i a; chattr -R -i -a ../target 2>/dev/null || true";
    // A file in it that is replaced, removed, made; everything, one file alone, another target.
    for (what, restore) in [
        ("chattr -i i/f; echo 2 >i/f; echo 2 >a/f", "restore"),
        ("chattr -i i/f; echo 2 >i/f; chattr +i i/f", "restore i/f"),
        ("chattr -i i/f; rm i/f i/l; rm -r i/d a/f", "restore i/f i/l i/d a/f"),
        ("touch i/.gdo-tmp-0123456789abcdef", "restore"),
    ] {
        world.sh(&format!("chattr -i i; chattr -a a; {what}; chattr +i i; chattr +a a"));
        world.ok(&restore.split(' ').collect::<Vec<_>>());
        let flags = world.sh("lsattr -d i i/f a | cut -c5,6,22- | tr -s ' '");
        assert_eq!((world.read("i/f"), world.read("a/f")), ("1\n".into(), "1\n".into()), "{what}");
        assert!(!world.exists("i/.gdo-tmp-0123456789abcdef"), "{what}");
        assert_eq!(world.sh("lsattr -d i a | tr -s ' ' | cut -d' ' -f1 | tr -d e-"), "i\na\n", "{what}: {flags}");
        assert_eq!(world.sh("ls .git/devops/state").trim_end(), "enrolled\nindex-checksum\nlock\nmirror", "{what}");
    }
    // A run that is killed, or fails, while the directory is open: the next one locks it, also if it only led to what was asked for.
    world.sh("ino=$(stat -c %i i); chattr -i i; printf 'git-devops lifted flags 1\n%s 16 /i\n' $ino >.git/devops/state/lifted-$(stat -c %Hd-%Ld-%i .)");
    world.ok(&["restore", "free"]);
    assert_eq!(world.sh("lsattr -d i | tr -s ' ' | cut -d' ' -f1 | tr -d e-"), "i\n");
    world.sh(unlock);
}

#[test]
fn a_locked_file_that_is_owned_no_more_is_removed() {
    let world = World::new();
    if !can_lock(&world) {
        eprintln!("no inode flags here: locked files are NOT covered");
        return;
    }
    world.sh("echo 1 >f; gdo snapshot -q; echo 1 >gone; chattr +i gone; gdo snapshot -q");
    world.ok(&["restore", "--source", "HEAD~1"]);
    assert!(!world.exists("gone"));
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
    for (paths, refusal) in [
        (&[][..], "refused: mode: nothing was written: 'sub' is a submodule"),
        (&["sub"], "refused: mode: nothing was written: 'sub' is a submodule"),
        (&["a", "d"], "refused: meta: nothing was written: cannot read stored directory 'd'"),
    ] {
        let run = world.gdo(&[&["restore", "--source", "odd", "--target", "../target"], paths].concat());
        assert_eq!((run.code, world.exists("../target/a")), (65, false), "{}", run.err);
        assert!(run.err.contains(refusal), "{}", run.err);
    }
    world.ok(&["restore", "--source", "odd", "--target", "../target", "a"]);
    assert_eq!(world.read("../target/a"), "1");
}

#[test]
fn only_what_is_right_stays_as_it_is() {
    let world = World::new();
    // Large with a hole, large without, larger than one list of chunks, small with a hole, small without.
    world.sh("for n in 1 2 3 4; do head -c 1000000 /dev/urandom; done >plain
         truncate -s 9M holes; dd if=plain of=holes conv=notrunc bs=1M seek=5 count=2 status=none
         head -c 100000000 /dev/urandom >long
         truncate -s 100000 sparse; echo end >>sparse; echo 1 >small");
    world.snapshot();
    let index = world.ok(&["git", "cat-file", "blob", "HEAD:plain"]);
    assert!(index.starts_with("git-devops"), "{index}");
    let wrong = [
        "printf x | dd of=plain conv=notrunc bs=1 seek=2000000 status=none",
        "printf x >>plain",
        "truncate -s -1 plain",
        // What is stored of a large file is its chunk index: the file is another thing.
        "gdo git cat-file blob HEAD:plain >plain",
        "printf x | dd of=holes conv=notrunc bs=1 seek=0 status=none",
        "fallocate -p -o 6M -l 64K holes",
        "dd if=/dev/zero of=holes conv=notrunc bs=1M count=1 status=none",
        "printf x | dd of=long conv=notrunc bs=1 seek=99999999 status=none",
        "dd if=/dev/zero of=sparse conv=notrunc bs=1 count=1 status=none",
        "echo 2 >small",
        ": >small",
    ];
    for change in wrong {
        world.sh(&format!("{change}; gdo restore -q"));
        assert_eq!(world.ok(&["status"]).lines().last().unwrap(), "nothing differs in 6 files and directories", "{change}");
    }
    let inodes = || ["plain", "holes", "long", "sparse", "small"].map(|path| world.inode(path));
    let before = inodes();
    world.sh("touch -d @1 plain holes long sparse small; gdo restore -q");
    assert_eq!(before, inodes(), "only times are set where the content is right");
    // Lists that are gone are not needed for a file that is right.
    world.sh("find .git/devops/store/packs -type f -delete; touch -d @1 long; gdo restore -q long");
    assert_eq!(before, inodes());
}
