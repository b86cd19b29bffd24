//! What a repair brings back, and from where.

use crate::common::World;

#[test]
fn what_one_source_cannot_give_a_repair_takes_from_the_next() {
    let world = World::new();
    world.sh("seq 500000 >large");
    world.snapshot();
    // A store that tells of chunks and whose packs cannot be opened, then the file.
    world.sh("cp -r .git/devops/store ../one; mkdir ../two; mv large ../two; rm -r .git/devops/store/packs/*");
    world.sh("cd ../one/packs; for pack in */*.pack; do rm -f $pack; ln -s ${pack##*/} $pack; done");
    let run = world.gdo(&["check", "--repair", "--from", "../one", "--from", "../two"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let warnings: Vec<&str> = run.err.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("/one': not all of it can be read; "), "{}", run.err);
    world.ok(&["check", "--data"]);
    world.sh("gdo cat HEAD:large | cmp - ../two/large");
}

/// Makes a repository with two small files and what nothing leads to, all in one pack; returns it with the pack's path without its end.
fn packed() -> (World, String) {
    let world = World::new();
    world.write("one", "content of one\n");
    world.snapshot();
    world.write("two", "content of two\n");
    world.snapshot();
    let stray = world.sh("echo stray | git hash-object -w --stdin");
    world.sh(&format!("git update-ref refs/tags/stray {}; git repack -adq; git update-ref -d refs/tags/stray", stray.trim()));
    let pack = world.sh("ls .git/objects/pack/*.pack");
    (world, pack.trim().trim_end_matches(".pack").to_owned())
}

/// Changes a byte of the content of the object that `name` is, in the pack; returns the objects before it, and those after it.
fn damage(world: &World, pack: &str, name: &str) -> [Vec<String>; 2] {
    let oid = world.sh(&format!("git rev-parse {name}"));
    let listed = world.sh(&format!("git verify-pack -v {pack}.idx | grep -E '^[0-9a-f]{{40}} ' | sort -nk5"));
    let lines: Vec<&str> = listed.lines().collect();
    let at = lines.iter().position(|line| line.starts_with(oid.trim())).unwrap();
    let words: Vec<&str> = lines[at].split_ascii_whitespace().collect();
    let (length, start): (u64, u64) = (words[3].parse().unwrap(), words[4].parse().unwrap());
    flip(world, &format!("{pack}.pack"), start + length - 2);
    [&lines[..at], &lines[at + 1..]].map(|lines| lines.iter().map(|line| line[..40].to_owned()).collect())
}

/// Changes the byte at `at` of a file.
fn flip(world: &World, path: &str, at: u64) {
    let mut bytes = std::fs::read(world.path(path)).unwrap();
    bytes[at as usize] ^= 0x55;
    std::fs::remove_file(world.path(path)).unwrap();
    std::fs::write(world.path(path), bytes).unwrap();
}

fn packs(world: &World) -> String {
    world.sh("cd .git/objects/pack; ls *.pack; cd ../../devops/state/quarantine/objects/pack; ls *.pack")
}

#[test]
fn what_is_sound_in_a_damaged_pack_comes_back_once_and_later_what_is_missed() {
    let (world, pack) = packed();
    damage(&world, &pack, "HEAD:two");
    let run = world.gdo(&["check", "--repair"]);
    assert!(run.code == 8 && run.out.contains("; 0 objects and"), "{}{}", run.out, run.err);
    const STRAY: &str = "git cat-file -e $(echo stray | git hash-object --stdin)";
    world.sh(STRAY);
    world.sh("git cat-file -e HEAD:one");
    world.ok(&["check", "--repair", "--from", "."]);
    // What is here is not written again, and what was removed since stays away.
    let before = packs(&world);
    world.ok(&["check", "--repair"]);
    assert_eq!(packs(&world), before);
    world.sh(&format!("git prune --expire=now; git repack -adq; git prune-packed; ! {STRAY} 2>/dev/null"));
    let before = packs(&world);
    world.ok(&["check", "--repair"]);
    assert_eq!(packs(&world), before);
    // What is lost later and was sound then comes from there.
    world.sh(&format!("rm -f .git/objects/pack/*; gdo check --repair --from . >/dev/null; git fsck; ! {STRAY} 2>/dev/null"));
    world.ok(&["check", "--data"]);
}

#[test]
fn what_another_pack_has_is_not_copied_out_of_a_damaged_one() {
    let (world, pack) = packed();
    world.sh(&format!("for end in pack idx; do cp {pack}.$end .git/objects/pack/pack-other.$end; done"));
    damage(&world, &pack, "HEAD:two");
    world.ok(&["check", "--repair"]);
    assert_eq!(world.sh("cd .git/objects/pack; ls *.pack"), "pack-other.pack\n");
}

#[test]
fn of_a_pack_without_its_index_comes_back_what_lies_before_the_damage() {
    let (world, pack) = packed();
    let [before, after] = damage(&world, &pack, "HEAD:two");
    world.sh(&format!("rm -f {pack}.idx"));
    world.gdo(&["check", "--repair"]);
    assert!(has(&world, "HEAD") && has(&world, "HEAD:one"));
    let stray = world.sh("echo stray | git hash-object --stdin");
    let lost: Vec<&String> = before.iter().filter(|oid| !has(&world, oid)).collect();
    assert!(lost.iter().all(|oid| **oid == stray.trim()) && before.len() > 5, "{lost:?}");
    assert!(after.iter().all(|oid| !has(&world, oid)));
}

#[test]
fn of_a_pack_with_a_damaged_index_comes_back_what_lies_before_and_after_the_damage() {
    let (world, pack) = packed();
    let [before, after] = damage(&world, &pack, "HEAD:one");
    // The index has a wrong name for one that lies after it, and the right place.
    let index = format!("{pack}.idx");
    let two = world.sh("git rev-parse HEAD:two");
    assert!(after.contains(&two.trim().to_owned()));
    let name: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&two[2 * at..2 * at + 2], 16).unwrap()).collect();
    let at = std::fs::read(world.path(&index)).unwrap().windows(20).position(|bytes| bytes == name).unwrap();
    flip(&world, &index, at as u64 + 1);
    let run = world.gdo(&["check", "--repair"]);
    assert_eq!(run.code, 8, "{}{}", run.out, run.err);
    // Also what nothing leads to.
    assert!(before.iter().chain(&after).all(|oid| has(&world, oid)));
    assert!(before.len() > 5 && has(&world, "HEAD:two") && !has(&world, "HEAD:one"));
}

#[test]
fn what_is_missing_is_known_where_the_git_index_is_damaged_too() {
    let (world, pack) = packed();
    damage(&world, &pack, "HEAD:two");
    flip(&world, ".git/index", 30);
    world.ok(&["check", "--repair", "--from", "."]);
    assert!(has(&world, "HEAD:two"));
}

#[test]
fn a_merge_that_is_not_finished_ends_a_repair_before_anything_is_put_aside() {
    let (world, pack) = packed();
    damage(&world, &pack, "HEAD:two");
    world
        .sh("for stage in 1 2 3; do echo \"100644 $(git rev-parse HEAD:one) $stage\tone\"; done | git update-index --index-info");
    let run = world.gdo(&["check", "--repair", "--from", "."]);
    assert!(run.code != 0 && run.err.contains("finish or abort it first"), "{}{}", run.out, run.err);
    assert!(world.exists(&format!("{pack}.pack")) && !world.exists(".git/devops/state/quarantine"));
}

#[test]
fn before_anything_is_put_aside_it_is_settled_that_the_next_snapshot_reads_all_files() {
    let (world, pack) = packed();
    damage(&world, &pack, "HEAD:two");
    world.sh("strace -f -o ../trace -e trace=unlink,unlinkat,rename,renameat,renameat2 gdo check --repair || true");
    let trace = world.read("../trace");
    let line = |of: &str| trace.lines().position(|line| line.contains(of)).unwrap_or_else(|| panic!("no {of} in {trace}"));
    assert!(line("index-checksum") < line("/quarantine/"), "{trace}");
    // So what is lost comes back from the work tree.
    world.ok(&["snapshot", "-q"]);
    world.ok(&["check", "--data"]);
}

#[test]
fn two_damaged_packs_of_one_name_are_kept_and_each_gives_what_is_sound_in_it() {
    let (world, pack) = packed();
    world.sh("cp -r .git/objects/pack ../pack");
    let name = world.sh("basename ../pack/*.pack");
    for lost in ["HEAD:one", "HEAD:two"] {
        world.sh("rm -f .git/objects/pack/*; cp ../pack/* .git/objects/pack");
        damage(&world, &pack, lost);
        world.gdo(&["check", "--repair"]);
    }
    assert!(has(&world, "HEAD:one") && has(&world, "HEAD:two"), "{}", packs(&world));
    let aside = world.sh("cd .git/devops/state/quarantine/objects/pack; ls *.pack");
    let stem = name.trim().trim_end_matches(".pack");
    assert_eq!(aside, format!("{stem}-1.pack\n{stem}.pack\n"));
}

fn has(world: &World, name: &str) -> bool {
    world.sh(&format!("git cat-file -e {name} 2>/dev/null && echo yes || true")) == "yes\n"
}
