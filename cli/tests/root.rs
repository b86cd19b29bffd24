//! `--root DIR`: everything of an instance is within DIR, wherever its symlinks point.

use crate::common::World;

#[test]
fn no_symlink_leads_our_own_places_out_of_the_root() {
    for place in ["etc", "etc/git-devops", "etc/git-devops/repo", "var", "var/cache/git-devops", "var/lib", "var/lib/git-devops"]
    {
        for target in ["$PWD/../outside", "/outside", &format!("{}outside", "../".repeat(place.split('/').count()))] {
            let world = World::new();
            world.sh("mkdir -p ../root ../outside/git-devops");
            let run = |args: &[&str]| world.gdo(&[&["--root", "../root"], args].concat());
            world.sh(&format!("mkdir -p ../root/$(dirname {place}); ln -s {target} ../root/{place}"));
            let made = run(&["init", "--system"]);
            assert_eq!(made.code, 65, "{place} -> {target}: {}{}", made.out, made.err);
            assert!(made.err.contains("leads out of") && made.err.contains(place), "{place} -> {target}: {}", made.err);
            assert_eq!(world.sh("find ../outside").lines().count(), 2, "{place} -> {target}");
            // One that is put there later.
            world.sh(&format!("rm ../root/{place}"));
            assert_eq!(run(&["init", "--system"]).code, 0);
            world.sh(&format!("rm -rf ../outside; mv ../root/{place} ../outside; ln -s {target} ../root/{place}"));
            let opened = run(&["status"]);
            assert_eq!(opened.code, 65, "{place} -> {target}: {}{}", opened.out, opened.err);
            assert!(opened.err.contains("leads out of"), "{place} -> {target}: {}", opened.err);
        }
    }
}

#[test]
fn a_symlink_that_stays_within_the_root_is_followed() {
    let world = World::new();
    world.sh("mkdir -p ../root/etc ../root/var/cache ../root/srv/store; ln -s ../../srv/store ../root/var/cache/git-devops");
    world.ok(&["--root", "../root", "init", "--system"]);
    world.ok(&["--root", "../root", "status"]);
    assert!(!world.sh("ls ../root/srv/store").is_empty());
}

#[test]
fn the_machine_is_the_one_below_the_root() {
    let world = World::new();
    let run = |args: &[&str]| world.gdo(&[&["--root", "../root"], args].concat());
    world.sh("mkdir -p ../root/etc ../root/run; echo 0123456789abcdef > ../root/run/id-of-a-test; ln -s /run/id-of-a-test ../root/etc/machine-id");
    assert_eq!(run(&["init", "--system", "--type", "web"]).code, 0);
    world.sh("echo conf > ../root/etc/conf; gdo --root ../root snapshot -q etc/conf");
    let converge = || run(&["converge", "--offline", "--to", "web"]);
    assert_eq!(converge().code, 0);
    world.sh("echo another > ../root/run/id-of-a-test; touch ../root/etc/conf");
    let other = converge();
    assert!(other.code == 65 && other.err.contains("machine-id differs"), "{}: {}{}", other.code, other.out, other.err);
    // A symlink to where nothing is, is no machine-id; a file outside is not looked at.
    world.sh("echo 0123456789abcdef > ../outside; ln -sf $PWD/../outside ../root/etc/machine-id");
    let other = converge();
    assert!(other.code == 65 && other.err.contains("machine-id differs"), "{}: {}{}", other.code, other.out, other.err);
}
