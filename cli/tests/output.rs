//! What the program prints, and how it ends.

use crate::common::World;

#[test]
fn whoever_closes_our_output_ends_us_quietly() {
    let world = World::new();
    world.sh("head -c 1000000 /dev/urandom >large; for i in $(seq 2000); do echo $i >a-name-that-takes-some-room-$i; done");
    world.sh("head -c 100000 /dev/urandom | base64 >small");
    world.snapshot();
    for verb in [
        "cat HEAD:large",
        "cat HEAD:small",
        "ls -z",
        "ls --json",
        "log --json",
        "show",
        "git show",
        "completions bash",
        "chunk large",
        "restore -n --json --target ../target",
    ] {
        let said = world.sh(&format!("rm -f ../code; {{ code=0; sleep 0.05; gdo {verb} 2>../said || code=$?; echo $code >../code; }} | true; while ! test -s ../code; do sleep 0.01; done; cat ../code ../said"));
        assert_eq!(said, "141\n", "{verb}");
    }
    // What cannot be said to anyone is no panic.
    world.sh("{ code=0; sleep 0.05; gdo --json cat HEAD:none 2>&1 || code=$?; echo $code >../code; } | true; sleep 0.3; test $(cat ../code) = 9");
}

#[test]
fn a_dry_run_tells_what_would_be_made_in_a_target_that_is_not_there() {
    let world = World::new();
    world.sh("mkdir d; echo 1 >d/a; ln d/a d/b; mkfifo node; gdo snapshot -q");
    let steps = world.ok(&["restore", "-qn", "--target", "../new/target"]);
    assert_eq!(steps, "create .\ncreate d\ncreate d/a\ncreate d/b\ncreate node\n");
    assert!(!world.exists("../new"));
    assert_eq!(world.ok(&["restore", "-qn", "--target", "../new/target", "d/b"]), "create .\ncreate d\ncreate d/b\n");
}

#[test]
fn a_path_where_a_revision_is_meant_gets_the_right_form() {
    let world = World::new();
    world.write("notes.txt", "1");
    world.snapshot();
    std::fs::remove_file(world.path("notes.txt")).unwrap(); // stored is enough
    for (call, form) in [
        (&["diff", "notes.txt"][..], "gdo diff -- notes.txt"),
        (&["diff", "HEAD", "notes.txt"], "gdo diff HEAD -- notes.txt"),
        (&["log", "notes.txt"], "gdo log -- notes.txt"),
        (&["ls", "notes.txt"], "gdo ls HEAD -- notes.txt"),
        (&["show", "notes.txt"], "gdo log --name-status -- notes.txt"),
    ] {
        let run = world.gdo(call);
        assert!(run.code == 2 && run.err.contains(&format!("write '{form}'")), "{call:?}: {}", run.err);
        world.ok(&form.split(' ').skip(1).collect::<Vec<_>>());
    }
    for call in [&["diff", "none"][..], &["ls", "none"], &["log", "none"], &["diff", "none", "notes.txt"]] {
        assert_eq!(world.gdo(call).code, if call.len() == 2 { 9 } else { 2 }, "{call:?}");
    }
}

#[test]
fn what_could_not_be_looked_at_is_named_and_makes_the_result_partial() {
    let world = World::new();
    // Even root is not let read 'flush' here.
    let gdo = |args: &[&str]| world.gdo(&[&["--git-dir", "../repo", "--work-tree", "/proc/sys/net/ipv4/route"], args].concat());
    assert_eq!(gdo(&["init"]).code, 0);
    for call in [&["snapshot", "."][..], &["status"], &["diff"], &["diff", "--exit-code"], &["diff", "--json"], &["diff", "HEAD"]]
    {
        let run = gdo(call);
        assert!(run.code == 3 && run.err.contains("'flush': "), "{call:?}: {} {}", run.code, run.err);
    }
    assert_eq!(gdo(&["diff", "HEAD", "HEAD"]).code, 0);
}

#[test]
fn an_absolute_path_below_another_root_begins_there() {
    let world = World::new();
    world.sh("mkdir -p ../root/etc; echo 1 >../root/etc/hosts; gdo --root ../root init --system");
    world.ok(&["--root", "../root", "snapshot", "/etc/hosts"]);
    assert!(world.ok(&["--root", "../root", "ls", "HEAD", "/etc"]).ends_with("etc/hosts\n"));
    world.ok(&["--root", "../root", "snapshot", "/"]);
    assert_eq!(world.ok(&["--root", "../root", "status", "-qz"]), "");
}
