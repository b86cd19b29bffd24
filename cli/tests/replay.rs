//! Changes that are made on one host and replayed on another: in order, once, whole, and halted where something is in the way.

use crate::common::World;
use crate::common::pair::{Pair, echo};

#[test]
fn files_and_commands_come_in_order_and_once() {
    let pair = Pair::new();
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap", "etc/conf"]);
    pair.exec(&["--", "sh", "-c", "cat etc/conf >> ../ran; echo made > made"]);
    std::fs::remove_file(pair.origin.path("etc/other")).unwrap();
    pair.origin.ok(&["snap"]);
    pair.release();
    let planned = pair.run(&["up", "-n", "--offline", "--to", "o/main"], 0);
    assert!(planned.out.contains("would apply 3 commits") && planned.out.contains("M etc/conf"), "{}", planned.out);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("old\n".into(), String::new()));
    for _ in 0..3 {
        pair.up(0);
        assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("new\n".into(), "new\n".into()));
        assert!(pair.target.exists("made") && !pair.target.exists("etc/other"));
        assert!(pair.target.ok(&["status"]).contains("nothing differs"), "{}", pair.target.ok(&["status"]));
    }
    let trees = [&pair.origin, &pair.target].map(|world| world.ok(&["git", "rev-parse", "HEAD"]));
    assert_eq!(trees[0], trees[1]);
}

#[test]
fn an_exec_that_was_cut_off_after_its_command_is_finished_and_not_run_again() {
    for next in ["exec", "ci"] {
        let pair = Pair::new();
        // A lock of git's on the ref stops it just where a kill would: the command ran and is staged.
        let script = "echo x >> ../ran; echo made > etc/conf; test -e ../ran2 || { mkdir -p .git/refs/devops; : > .git/refs/devops/wip.lock; }";
        let words = ["exec", "--", "sh", "-c", script];
        assert_eq!(pair.origin.gdo(&words).code, 7);
        if next == "exec" {
            pair.origin.ok(&words);
        }
        assert_eq!(pair.origin.sh("cat ../ran"), "x\n", "{next}");
        pair.release();
        pair.target.sh(": > ../ran2");
        pair.up(0);
        assert_eq!((pair.target.sh("cat ../ran"), pair.target.read("etc/conf")), ("x\n".into(), "made\n".into()), "{next}");
        assert_eq!(
            pair.origin.sh("gdo git ls-tree -r --name-only HEAD | grep -c '^.git-devops/journal/[0-9A-Z]'"),
            "1\n",
            "{next}"
        );
    }
}

#[test]
fn what_fails_halts_and_is_tried_again_in_its_place() {
    let pair = Pair::new();
    pair.origin.sh("touch ../ok");
    pair.exec(&echo("a"));
    pair.exec(&["--", "sh", "-c", "echo complaint; test -e ../ok"]);
    pair.exec(&echo("b"));
    pair.release();
    let halted = pair.up(12);
    assert!(halted.err.contains("command-failed") && halted.err.contains("complaint"), "{}", halted.err);
    assert!(halted.err.contains("gdo resume") && halted.err.contains("gdo skip"), "{}", halted.err);
    // A timer that calls it again runs nothing, and who looks what it would do is told the same.
    pair.up(12);
    let looked = pair.run(&["up", "-n", "--offline", "--to", "o/main"], 12);
    assert!(looked.err.contains("gdo resume") && !looked.out.contains("would apply"), "{}{}", looked.out, looked.err);
    assert_eq!(pair.note("ran"), "a\n");
    let number = pair
        .run(&["log", "--host"], 0)
        .out
        .lines()
        .find(|line| line.contains(" run "))
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(pair.run(&["log", "--output", &number], 0).out, "complaint\n");
    pair.run(&["resume"], 12);
    pair.target.sh("touch ../ok");
    pair.run(&["resume"], 0);
    assert_eq!(pair.note("ran"), "a\nb\n");
    pair.up(0);
    assert_eq!(pair.note("ran"), "a\nb\n");
}

#[test]
fn a_command_that_is_killed_or_takes_too_long_halts_and_is_tried_again_in_its_place() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.origin.sh("touch ../ok ../quick");
    pair.exec(&["--", "sh", "-c", "test -e ../ok || kill -9 $$"]);
    pair.exec(&["--timeout", "1", "--", "sh", "-c", "test -e ../quick || sleep 60"]);
    pair.exec(&echo("b"));
    pair.release();
    let killed = pair.up(12);
    assert!(killed.err.contains("command-failed") && killed.err.contains("signal 9"), "{}", killed.err);
    pair.target.sh("touch ../ok");
    let slow = pair.run(&["resume"], 12);
    assert!(slow.err.contains("command-failed") && slow.err.contains("took too long"), "{}", slow.err);
    assert_eq!(pair.note("ran"), "a\n");
    pair.target.sh("touch ../quick");
    pair.run(&["resume"], 0);
    assert_eq!(pair.note("ran"), "a\nb\n");
}

#[test]
fn a_skipped_command_is_remembered() {
    let pair = Pair::new();
    pair.origin.sh("touch ../ok");
    pair.exec(&["--", "test", "-e", "../ok"]);
    pair.exec(&echo("b"));
    pair.release();
    let halted = pair.up(12);
    let skip = halted.err.lines().find(|line| line.contains("gdo skip")).unwrap();
    let id = skip.split_whitespace().nth(2).unwrap();
    pair.run(&["skip", id, "--reason", "no such thing here"], 0);
    assert_eq!(pair.note("ran"), "b\n");
    assert!(pair.run(&["log", "--host"], 0).out.contains("as=skip"));
}

#[test]
fn a_command_that_was_cut_off_is_not_run_again_by_itself() {
    let pair = Pair::new();
    pair.exec(&["--", "sh", "-c", "echo x >> ../ran; test ! -e ../kill || kill -9 $PPID"]);
    pair.exec(&echo("b"));
    pair.release();
    pair.target.sh("touch ../kill; gdo up --offline --to o/main || test $? = 137");
    assert_eq!(pair.note("ran"), "x\n");
    let halted = pair.up(12);
    assert!(halted.err.contains("command-unknown") && halted.err.contains("--rerun"), "{}", halted.err);
    pair.up(12);
    assert_eq!(pair.note("ran"), "x\n");
    assert_eq!(pair.target.gdo(&["resume"]).code, 2, "it must be said which");
    pair.run(&["resume", "--done"], 0);
    assert_eq!(pair.note("ran"), "x\nb\n");

    let pair = Pair::new();
    pair.exec(&["--idempotent", "--", "sh", "-c", "echo x >> ../ran; test ! -e ../kill || { rm ../kill; kill -9 $PPID; }"]);
    pair.release();
    pair.target.sh("touch ../kill; gdo up --offline --to o/main || test $? = 137");
    pair.up(0);
    assert_eq!(pair.note("ran"), "x\nx\n", "one that says so may be run again");
}

#[test]
fn a_guard_decides_after_an_interruption_and_before() {
    let pair = Pair::new();
    pair.exec(&[
        "--creates",
        "/made-it",
        "--",
        "sh",
        "-c",
        "echo x >> ../ran; touch made-it; test ! -e ../kill || kill -9 $PPID",
    ]);
    pair.release();
    pair.target.sh("touch ../kill; gdo up --offline --to o/main || test $? = 137");
    pair.up(0);
    assert_eq!(pair.note("ran"), "x\n");
    pair.exec(&[&["--unless", "test -e ../have"], &echo("b")[..]].concat());
    pair.release();
    pair.target.sh("touch ../have");
    let run = pair.up(0);
    assert!(run.out.contains("not needed"), "{}", run.out);
    assert_eq!(pair.note("ran"), "x\n");
}

#[test]
fn a_reboot_is_waited_for() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.origin.ok(&["reboot", "--later"]);
    assert_eq!(pair.origin.gdo(&["ci"]).code, 13, "the origin waits, too");
    pair.origin.ok(&["resume", "--done"]);
    pair.exec(&echo("b"));
    pair.release();
    for more in [&[][..], &["-n"], &[]] {
        let halted = pair.run(&[&["up", "--offline", "--to", "o/main"], more].concat(), 13);
        assert!(halted.err.contains("gdo up -r"), "{}", halted.err);
        assert_eq!(pair.note("ran"), "a\n");
    }
    assert_eq!(pair.run(&["status", "--exit-code"], 13).code, 13);
    // Not the running system: nobody starts it anew for us.
    pair.run(&["up", "-r", "--offline", "--to", "o/main"], 13);
    pair.up(13);
    let boot = pair.target.path("../boot");
    std::fs::write(&boot, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let script = "mount --bind ../boot /proc/sys/kernel/random/boot_id; exec gdo up --offline --to o/main";
    pair.target.sh(&format!("unshare -m sh -ec '{script}'"));
    assert_eq!(pair.note("ran"), "a\nb\n");
}

#[test]
fn a_start_by_hand_is_the_one_that_is_waited_for() {
    for is_done_by_hand in [true, false] {
        let pair = Pair::new();
        pair.origin.ok(&["reboot", "--later"]);
        pair.origin.ok(&["resume", "--done"]);
        pair.exec(&echo("b"));
        pair.release();
        // Without '-r': both ways on that it names are there.
        for _ in 0..2 {
            assert!(pair.up(13).err.contains("gdo resume --done"));
        }
        let boot = pair.target.path("../boot");
        std::fs::write(&boot, "00000000-0000-4000-8000-000000000000\n").unwrap();
        if is_done_by_hand {
            let script = "mount --bind ../boot /proc/sys/kernel/random/boot_id; exec gdo up --offline --to o/main";
            pair.target.sh(&format!("unshare -m sh -ec '{script}'"));
        } else {
            pair.run(&["resume", "--done"], 0);
        }
        assert_eq!(pair.note("ran"), "b\n");
    }
}

#[test]
fn a_start_that_was_rolled_back_is_waited_for_again() {
    let pair = Pair::new();
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap", "etc"]);
    pair.origin.ok(&["reboot", "--later"]);
    pair.origin.ok(&["resume", "--done"]);
    pair.exec(&[&["--undo", "rm ../ran"], &echo("b")[..]].concat());
    pair.release();
    let boot = pair.target.path("../boot");
    let up_after_a_start = |number: u8, code: i32| {
        std::fs::write(&boot, format!("00000000-0000-4000-8000-{number:012}\n")).unwrap();
        let script = "mount --bind ../boot /proc/sys/kernel/random/boot_id; gdo up --offline --to o/main || test $? = $0";
        pair.target.sh(&format!("unshare -m sh -ec '{script}' {code}"));
    };
    // What it was started with was the old content.
    pair.up(13);
    let back = pair.run(&["rollback"], 0);
    assert!(!back.out.contains("had not succeeded"), "{}", back.out);
    pair.run(&["rollback", "1"], 0);
    pair.run(&["unhold"], 0);
    up_after_a_start(1, 13);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("new\n".to_owned(), String::new()));
    up_after_a_start(2, 0);
    assert_eq!(pair.note("ran"), "b\n");
    pair.run(&["rollback", "3"], 0);
    pair.run(&["unhold"], 0);
    up_after_a_start(2, 13);
    assert_eq!(pair.note("ran"), "");
    up_after_a_start(3, 0);
    assert_eq!(pair.note("ran"), "b\n");
}

#[test]
fn drift_halts_before_anything_is_written() {
    let pair = Pair::new();
    pair.origin.write("etc/conf", "new\n");
    pair.origin.write("etc/fresh", "fresh\n");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    pair.target.write("etc/conf", "hacked\n");
    let halted = pair.up(12);
    assert!(halted.err.contains("drift") && halted.err.contains("'etc/conf'"), "{}", halted.err);
    assert!(!pair.target.exists("etc/fresh"));
    pair.target.write("etc/conf", "old\n");
    // Only its time differs now, and that is no drift.
    pair.up(0);
    assert_eq!(pair.target.read("etc/conf"), "new\n");
    pair.target.write("etc/fresh", "");
    assert!(pair.target.ok(&["status"]).contains("M etc/fresh"));
}

#[test]
fn there_are_three_ways_out_of_drift() {
    let pair = Pair::new();
    let target = &pair.target;
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    let says_nothing_differs = || assert!(target.ok(&["status"]).contains("nothing differs"), "{}", target.ok(&["status"]));
    let hack = || {
        target.write("etc/conf", "hacked\n");
        assert_eq!(target.gdo(&["status", "--exit-code"]).code, 1);
        let halted = pair.up(12);
        let ways = ["drift", "'etc/conf'", "gdo diff -- PATH", "gdo fix PATH", "gdo up --theirs PATH"];
        assert!(ways.iter().all(|way| halted.err.contains(way)), "{}", halted.err);
        assert_eq!(target.read("etc/conf"), "hacked\n");
        assert!(target.ok(&["diff", "--", "etc/conf"]).contains("+hacked"));
    };
    // Back to what was applied, and on from there.
    hack();
    target.ok(&["fix", "etc/conf"]);
    pair.up(0);
    assert_eq!(target.read("etc/conf"), "new\n");
    says_nothing_differs();
    // The release's, at once; what lay there can be had.
    pair.origin.write("etc/conf", "newer\n");
    pair.origin.write("etc/other", "by the origin\n");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    hack();
    target.write("etc/other", "hacked, too\n");
    let one = pair.run(&["up", "--offline", "--to", "o/main", "--theirs", "etc/conf"], 12);
    assert!(one.err.contains("'etc/other'") && !one.err.contains("'etc/conf'"), "{}", one.err);
    let theirs = pair.run(&["up", "--offline", "--to", "o/main", "--theirs", "etc/conf", "--theirs", "etc/other"], 0);
    assert!(theirs.err.contains("'gdo fix --undo "), "{}", theirs.err);
    assert_eq!((target.read("etc/conf"), target.read("etc/other")), ("newer\n".into(), "by the origin\n".into()));
    says_nothing_differs();
    assert_eq!(target.gdo(&["status", "--exit-code"]).code, 0);
    target.ok(&["fix", "--undo"]);
    assert_eq!(target.read("etc/other"), "hacked, too\n");
    let unknown = pair.run(&["up", "--offline", "--to", "o/main", "--theirs", "etc/none"], 9);
    assert!(unknown.err.contains("'etc/none' is not owned"), "{}", unknown.err);
    // The change is meant: it becomes what all hosts are to have, on the host where changes are made.
    pair.origin.write("etc/conf", "hacked, and meant\n");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    target.ok(&["fix", "--all"]);
    pair.up(0);
    assert_eq!(target.read("etc/conf"), "hacked, and meant\n");
    says_nothing_differs();
}

#[test]
fn what_is_not_ours_stays_and_is_no_drift() {
    let pair = Pair::new();
    pair.origin.write("etc/fresh", "fresh\n");
    pair.origin.write("etc/same", "same\n");
    pair.origin.sh("chmod 600 etc/same");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    pair.target.write("etc/fresh", "mine\n");
    pair.target.write("etc/same", "same\n");
    pair.target.sh("chmod 600 etc/same");
    let halted = pair.up(12);
    assert!(halted.err.contains("collision") && halted.err.contains("'etc/fresh'"), "{}", halted.err);
    assert!(!halted.err.contains("etc/same"), "it has the very content: {}", halted.err);
    assert_eq!(pair.target.read("etc/fresh"), "mine\n");
    std::fs::remove_file(pair.target.path("etc/fresh")).unwrap();
    pair.up(0);
    // A directory that goes leaves what is not owned in it.
    std::fs::remove_dir_all(pair.origin.path("etc")).unwrap();
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.target.write("etc/mine", "mine\n");
    for _ in 0..2 {
        pair.up(0);
        assert_eq!(pair.target.sh("find etc").trim(), "etc\netc/mine");
    }
}

#[test]
fn a_directory_that_is_there_already_stays_with_what_is_in_it() {
    let pair = Pair::new();
    pair.origin.sh("mkdir -m 750 dir; echo theirs > dir/file");
    pair.origin.ok(&["snap", "dir"]);
    pair.release();
    pair.target.sh("mkdir -m 755 dir; echo mine > dir/mine");
    let halted = pair.up(12);
    assert!(halted.err.contains("'dir'") && halted.err.contains("gdo diff COMMIT -- PATH"), "{}", halted.err);
    assert!(pair.target.ok(&["diff", "o/main", "--", "dir"]).contains("-. mode=0750"));
    pair.target.sh("chmod 750 dir");
    pair.up(0);
    assert_eq!(pair.target.sh("stat -c %a dir; cat dir/*"), "750\ntheirs\nmine\n");
}

#[test]
fn many_handlers_are_owed_whole() {
    let pair = Pair::new();
    for n in 0..60 {
        let name = format!("reload-service-{n:03}");
        pair.origin.ok(&["handler", &name, "--", "sh", "-c", "echo x >> ../ran"]);
        pair.origin.ok(&["attributes", &format!("/etc/many/{n:03}"), &format!("handler={name}")]);
        pair.origin.write(&format!("etc/many/{n:03}"), "x\n");
    }
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    pair.up(0);
    assert_eq!(pair.note("ran").lines().count(), 60);
}

#[test]
fn only_what_a_host_stopped_at_is_skipped() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.release();
    let id = pair.origin.ok(&["git", "ls-tree", "--name-only", "HEAD:.git-devops/journal"]);
    let id = id.trim().strip_suffix(".entry").unwrap().to_owned();
    pair.run(&["skip", &id, "--reason", "a slip"], 9);
    pair.up(0);
    assert_eq!(pair.note("ran"), "a\n");
    assert!(!pair.target.ok(&["status"]).contains("skipped"));
}

#[test]
fn a_program_that_cannot_be_started_has_failed() {
    let pair = Pair::new();
    pair.origin.sh("printf '#!/bin/sh\\nexit 0\\n' > ../tool; chmod 755 ../tool");
    pair.exec(&["--", "../tool"]);
    pair.release();
    pair.target.sh("echo no > ../tool; chmod 644 ../tool");
    for _ in 0..2 {
        let halted = pair.up(12);
        assert!(halted.err.contains("command-failed") && halted.err.contains("exit code 126"), "{}", halted.err);
    }
    pair.target.sh("printf '#!/bin/sh\\nexit 0\\n' > ../tool; chmod 755 ../tool");
    pair.run(&["resume"], 0);
}

#[test]
fn a_command_that_makes_something_else_halts() {
    let pair = Pair::new();
    pair.origin.sh("echo 1 > ../who");
    pair.target.sh("echo 2 > ../who");
    pair.exec(&["--", "sh", "-c", "cp ../who etc/conf"]);
    pair.release();
    let halted = pair.up(12);
    assert!(halted.err.contains("effect") && halted.err.contains("'etc/conf'"), "{}", halted.err);
    // The same again is the same: the command is not run once more, and nothing is hidden.
    pair.up(12);
    pair.target.write("etc/conf", "1\n");
    pair.up(0);
    assert!(pair.target.ok(&["status"]).contains("nothing differs"), "{}", pair.target.ok(&["status"]));
}

#[test]
fn handlers_are_owed_until_they_succeed() {
    let pair = Pair::new();
    pair.origin.ok(&["handler", "reload", "--", "sh", "-c", "echo reload >> ../ran; test ! -e ../bad"]);
    pair.origin.ok(&["attributes", "etc/conf", "handler=reload"]);
    pair.origin.sh("touch ../ok");
    pair.exec(&["--", "sh", "-c", "echo new > etc/conf; test -e ../ok"]);
    pair.release();
    pair.up(12);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("new\n".into(), String::new()), "the command failed first");
    pair.target.sh("touch ../ok ../bad");
    let halted = pair.run(&["resume"], 12);
    assert!(halted.err.contains("handler"), "{}", halted.err);
    pair.target.sh("rm ../bad ../ran");
    pair.up(0);
    pair.up(0);
    assert_eq!(pair.note("ran"), "reload\n", "though the file was in place already, and not twice");

    // Killed before its end is known: it is run again.
    pair.origin.write("etc/conf", "newer\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.target.sh("rm ../ran");
    let handler = "echo reload >> ../ran; test ! -e ../kill || { rm ../kill; kill -9 $PPID; }";
    pair.origin.ok(&["handler", "reload", "--", "sh", "-c", handler]);
    pair.origin.write("etc/conf", "newest\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.target.sh("touch ../kill; gdo up --offline --to o/main || test $? = 137");
    pair.up(0);
    assert_eq!(pair.note("ran"), "reload\nreload\nreload\n");
}

#[test]
fn protected_files_and_many_deletions_need_a_word() {
    let pair = Pair::new();
    pair.origin.ok(&["attributes", "etc/conf", "protect"]);
    std::fs::remove_file(pair.origin.path("etc/conf")).unwrap();
    pair.origin.ok(&["snap"]);
    pair.release();
    let halted = pair.up(12);
    assert!(halted.err.contains("protected") && halted.err.contains("'etc/conf'"), "{}", halted.err);
    assert!(pair.target.exists("etc/conf"));

    let pair = Pair::new();
    pair.origin.sh("mkdir many; for n in $(seq 80); do echo $n > many/$n; done");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.up(0);
    pair.origin.sh("rm -r many");
    pair.origin.ok(&["snap"]);
    pair.release();
    let halted = pair.up(12);
    assert!(halted.err.contains("--yes-delete 81"), "{}", halted.err);
    assert!(pair.target.exists("many/80"));
    pair.run(&["up", "--offline", "--to", "o/main", "--yes-delete", "81"], 0);
    assert!(!pair.target.exists("many"));
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let pair = Pair::new();
    pair.origin.sh("mkdir boot; head -c 3000000 /dev/urandom > boot/kernel; echo x > etc/first");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.bring_chunks();
    let script = "mkdir -p boot; mount -t tmpfs -o size=1m,mode=755 none boot; \
                  if gdo up --offline --to o/main; then exit 99; else test $? = 12; fi; test ! -e etc/first; ls -A boot | wc -l";
    let said = pair.target.sh(&format!("unshare -m sh -ec '{script}' 2>&1"));
    assert!(said.contains("'boot'") && said.contains("are needed") && said.trim().ends_with('0'), "{said}");
    pair.target.sh("rmdir boot");
    pair.up(0);
}

#[test]
fn where_nothing_can_be_written_nothing_is_begun_anywhere() {
    let pair = Pair::new();
    pair.origin.sh("mkdir boot; for n in 1 2 3 4; do echo $n >boot/$n; done; echo x >etc/first; echo new >etc/conf");
    pair.origin.ok(&["snap"]);
    pair.release();
    let ways = [
        ("mount -t tmpfs -o nr_inodes=3,mode=755 none boot", "'boot': 4 files are to be made, and there are inodes for 2"),
        ("mount -t tmpfs -o ro,mode=755 none boot", "'boot': the filesystem is mounted read-only"),
        ("cp -a etc/conf ../conf; mount --bind ../conf etc/conf", "'etc/conf': something is mounted on it"),
    ];
    for (way, why) in ways {
        let look = "find . -path ./.git -prune -o -printf \"%p %s %i %T@ %C@\\n\" | sort | sha256sum";
        let script = format!(
            "mkdir -p boot; {way}; before=$({look}); if gdo up --offline --to o/main; then exit 99; else test $? = 12; fi; test \"$before\" = \"$({look})\""
        );
        let said = pair.target.sh(&format!("unshare -m sh -ec '{script}' 2>&1"));
        assert!(said.contains("halted: room") && said.contains(why), "{way}: {said}");
        assert_eq!(pair.target.gdo(&["log"]).out.matches("begin").count(), 0, "{way}");
    }
    pair.target.sh("rmdir boot");
    pair.up(0);
    assert_eq!((pair.target.read("boot/4"), pair.target.read("etc/conf")), ("4\n".into(), "new\n".into()));
}

#[test]
fn a_file_that_somebody_locked_stays_as_it_is() {
    let pair = Pair::new();
    if pair.target.sh("touch ../probe; chattr +i ../probe 2>/dev/null && chattr -i ../probe && echo yes || echo no").trim()
        == "no"
    {
        eprintln!("no inode flags here: locked files are NOT covered");
        return;
    }
    pair.origin.write("etc/conf", "new\n");
    pair.origin.write("etc/fresh", "fresh\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.target.sh("chattr +i etc/conf");
    let halted = pair.up(12);
    assert!(halted.err.contains("drift") && halted.err.contains("etc/conf"), "{}", halted.err);
    let flags = pair.target.sh("lsattr etc/conf | cut -c5");
    assert_eq!((pair.target.read("etc/conf"), pair.target.exists("etc/fresh"), flags.trim()), ("old\n".into(), false, "i"));
    pair.target.sh("chattr -i etc/conf");
    pair.up(0);
    assert_eq!((pair.target.read("etc/conf"), pair.target.exists("etc/fresh")), ("new\n".into(), true));
}

/// Every file is made for its owner alone, gets its owner next, and only then the mode that it is to have: at no moment may others read what they must not.
#[test]
fn nobody_else_can_read_a_file_before_it_has_its_owner_and_mode() {
    let pair = Pair::new();
    let world = &pair.target;
    if world.sh("id -u").trim() != "0" {
        eprintln!("not root: owners are NOT covered");
        return;
    }
    pair.origin.sh("for n in 1 2 3; do echo secret $n >etc/shadow$n; chgrp shadow etc/shadow$n; chmod 640 etc/shadow$n; done; setfacl -m u:1:r etc/shadow3");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.up(0);
    let before = world.sh("getfacl -R etc; stat -c '%n %a %u %g' etc/*");
    for damage in ["chmod 600 etc/*", "chown 1:1 etc/*; echo x >>etc/shadow2", "setfacl -b etc/shadow3; rm etc/shadow1"] {
        world.sh(damage);
        world.sh("strace -f -qq -e trace=openat,openat2,fchmod,fchown,fchmodat,fchownat,fsetxattr -o ../trace gdo fix --all");
        assert_eq!(world.sh("getfacl -R etc; stat -c '%n %a %u %g' etc/*"), before, "{damage}");
        let trace = world.read("../trace");
        let lines: Vec<&str> = trace.lines().collect();
        let made = |line: &str| line.contains("O_CREAT") && line.contains(", \".gdo-tmp-");
        assert!(lines.iter().any(|line| made(line)), "{damage}: {trace}");
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| made(line)) {
            assert!(line.contains("0600"), "{line}");
            let fd = line.rsplit("= ").next().unwrap();
            let call = |name: &str| lines[at..].iter().position(|line| line.contains(name) && line.contains(&format!("({fd}, ")));
            let (owner, mode) = (call("fchown").unwrap(), call("fchmod").unwrap());
            assert!(owner < mode, "{damage}: the mode came before the owner: {}", lines[at + mode]);
        }
    }
}

#[test]
fn a_command_has_huge_pages_and_the_limits_of_any_other_process() {
    let pair = Pair::new();
    pair.origin.ok(&["exec", "--", "grep", "-q", "THP_enabled:.1", "/proc/self/status"]);
    let limit = "test $(ulimit -S -n) = 1024 || test $(ulimit -H -n) -lt 1024";
    pair.origin.ok(&["exec", "--", "sh", "-c", limit]);
}

#[test]
fn work_in_progress_is_taken_back_or_checked_in() {
    let pair = Pair::new();
    let origin = &pair.origin;
    origin.write("etc/conf", "new\n");
    origin.ok(&["snap"]);
    origin.ok(&["exec", "--undo", "echo undone >> ../ran", "--", "sh", "-c", "echo a >> ../ran; echo m > made"]);
    for refused in [&["commit", "-m", "x"][..], &["snapshot"], &["up", "--offline", "--to", "main"], &["rollback"]] {
        let run = origin.gdo(refused);
        assert!(run.code == 10 && run.err.contains("gdo ci"), "{refused:?}: {} {}", run.code, run.err);
    }
    origin.ok(&["abort"]);
    assert_eq!(
        (origin.read("etc/conf"), origin.read("../ran"), origin.exists("made")),
        ("old\n".into(), "a\nundone\n".into(), false)
    );
    assert!(origin.ok(&["status"]).contains("nothing differs"), "{}", origin.ok(&["status"]));
    assert_eq!(origin.gdo(&["abort"]).code, 9);
    origin.ok(&["exec", "--", "sh", "-c", "echo m > made"]);
    let refused = origin.gdo(&["abort"]);
    assert!(refused.code == 12 && refused.err.contains("--content-only"), "{}", refused.err);
    assert!(origin.exists("made"));
    origin.ok(&["abort", "--content-only"]);
    assert!(!origin.exists("made"));
    assert_eq!(origin.gdo(&["ci"]).code, 9, "there is nothing left");

    // A command that fails is not journalled, and one with drift before it is not begun.
    assert_eq!(origin.gdo(&["exec", "--", "false"]).code, 12);
    assert_eq!(origin.gdo(&["ci"]).code, 9);
    origin.write("etc/conf", "drift\n");
    assert_eq!(origin.gdo(&["exec", "--", "true"]).code, 10);
}

#[test]
fn a_script_learns_from_status_how_this_host_stands() {
    let pair = Pair::new();
    let status = |code: i32| pair.run(&["status", "--exit-code"], code).out;
    status(0);
    pair.exec(&["--", "sh", "-c", "test ! -e ../bad"]);
    pair.release();
    pair.target.sh("touch ../bad");
    pair.up(12);
    assert!(status(12).contains("'gdo up -n' says what is in the way"));
    // Nothing but who asks for it gets that.
    pair.run(&["status"], 0);
    pair.target.sh("rm ../bad");
    pair.run(&["resume"], 0);
    status(0);
    pair.origin.ok(&["handler", "reload", "--", "test", "!", "-e", "../bad"]);
    pair.origin.ok(&["attributes", "etc/conf", "handler=reload"]);
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.target.sh("touch ../bad");
    pair.up(12);
    assert!(status(12).contains("handlers owed: reload"));
    pair.target.sh("rm ../bad");
    pair.up(0);
    status(0);
    pair.target.write("etc/conf", "drift\n");
    status(1);
}

#[test]
fn what_is_only_staged_is_named_by_a_check_in() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.origin.ok(&["attributes", "etc/conf", "protect"]);
    let said = pair.origin.ok(&["ci"]);
    assert!(said.contains("not in it: A .git-devops/attributes\n'gdo snap' takes that"), "{said}");
    pair.origin.ok(&["snap"]);
    let said = pair.origin.ok(&["ci"]);
    assert!(said.starts_with("commit ") && said.lines().count() == 1, "{said}");
    pair.send();
    pair.up(0);
    assert!(pair.target.ok(&["attributes"]).contains("protect"));
}

#[test]
fn a_rollback_goes_back_exactly_and_holds() {
    let pair = Pair::new();
    for (word, undo) in [("a", true), ("b", true), ("c", false)] {
        pair.origin.write("etc/conf", &format!("{word}\n"));
        pair.origin.ok(&["snap"]);
        let undo = if undo { vec!["--undo", "echo undo >> ../ran"] } else { vec![] };
        pair.exec(&[&undo[..], &echo(word)].concat());
    }
    pair.release();
    pair.up(0);
    let planned = pair.run(&["rollback", "-n", "4"], 0);
    assert!(planned.out.contains("cannot be undone") && planned.out.contains("undo 0"), "{}", planned.out);
    let refused = pair.run(&["rollback", "4"], 12);
    assert!(refused.err.contains("--content-only"), "{}", refused.err);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("c\n".into(), "a\nb\nc\n".into()));
    pair.run(&["rollback", "--content-only", "2"], 0);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("b\n".into(), "a\nb\nc\n".into()));
    pair.run(&["rollback", "2"], 0);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("a\n".into(), "a\nb\nc\nundo\n".into()));
    assert!(pair.target.ok(&["status"]).contains("nothing differs"), "{}", pair.target.ok(&["status"]));
    // What was undone runs again, what was not does not.
    pair.up(0);
    assert_eq!((pair.target.read("etc/conf"), pair.note("ran")), ("c\n".into(), "a\nb\nc\nundo\nb\n".into()));
}

#[test]
fn inputs_travel_with_their_command() {
    let pair = Pair::new();
    pair.origin.sh("head -c 300000 /dev/urandom > ../big; echo small > ../small");
    pair.exec(&[
        "--input",
        "../big",
        "--input",
        "little=../small",
        "--",
        "sh",
        "-c",
        "cat \"$1/big\" \"$1/little\" | sha256sum > ../sum",
        "sh",
        "${in}",
    ]);
    pair.release();
    let missing = pair.up(9);
    assert!(missing.err.contains("nothing was begun"), "{}", missing.err);
    pair.bring_chunks();
    pair.up(0);
    assert_eq!(pair.note("sum"), pair.origin.read("../sum"));
    assert!(!pair.target.exists(".git/devops/state/in") || pair.target.sh("ls .git/devops/state/in").is_empty());
}

#[test]
fn a_commit_made_by_hand_or_a_changed_entry_is_not_passed_over() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.release();
    pair.up(0);
    // An entry that is changed after the fact.
    pair.origin.sh("git clone -q .git ../clone; cd ../clone; git config user.name x; git config user.email x@x; \
         for f in .git-devops/journal/*; do sed -i s/timeout.*//g $f; echo 'timeout 5' >> $f; done; git commit -qam changed; \
         git push -q origin HEAD:refs/heads/evil");
    let from = pair.origin.path(".git");
    pair.target.sh(&format!("git -C .git fetch -q '{}' +refs/heads/evil:refs/remotes/o/evil", from.display()));
    let halted = pair.run(&["up", "--offline", "--to", "o/evil"], 12);
    assert!(halted.err.contains("journal"), "{}", halted.err);
    // A log that is gone: nobody knows what ran here.
    pair.target.sh("mv .git/devops/state/log ../log");
    let lost = pair.up(8);
    assert!(lost.err.contains("gdo adopt"), "{}", lost.err);
    pair.target.sh("mv ../log .git/devops/state/log");
    pair.target.write("etc/conf", "mine\n");
    pair.target.snapshot();
    let refused = pair.up(65);
    assert!(refused.err.contains("fork"), "{}", refused.err);
}

#[test]
fn a_file_that_does_not_pass_its_check_keeps_all_of_its_commit_away() {
    let pair = Pair::new();
    pair.origin.ok(&["attributes", "etc/conf", "validate=sh -c grep -q good %s || { echo no good in it; false; }"]);
    pair.origin.write("etc/conf", "bad\n");
    pair.origin.write("etc/other", "changed\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    let halted = pair.up(12);
    assert!(halted.err.contains("invalid") && halted.err.contains("no good in it"), "{}", halted.err);
    assert_eq!((pair.target.read("etc/conf"), pair.target.read("etc/other")), ("old\n".into(), "other\n".into()));
    // Who only restores runs nothing out of the repository.
    pair.origin.sh("rm etc/conf");
    pair.origin.ok(&["restore"]);
    assert_eq!(pair.origin.read("etc/conf"), "bad\n");
}

#[test]
fn what_fills_a_template_changes_without_a_commit() {
    let pair = Pair::new();
    let fact =
        |rack: &str| pair.target.sh(&format!("mkdir -p .git/devops/state/facts; echo {rack} >.git/devops/state/facts/rack"));
    fact("7");
    pair.origin.sh(
        "mkdir -p .git/devops/state/facts; echo 1 >.git/devops/state/facts/rack; echo 'in ${fact.rack}' > ../template; : > ../main
        gdo handler reload -- sh -c 'echo reload >> ../ran'; gdo attributes etc/where env handler=reload
        gdo env keys main ../main; gdo env template etc/where ../template; gdo restore -q; gdo snap -q",
    );
    pair.release();
    pair.up(0);
    assert_eq!((pair.target.read("etc/where"), pair.note("ran")), ("in 7\n".into(), "reload\n".into()));
    fact("8");
    let planned = pair.run(&["up", "-n", "--offline", "--to", "o/main"], 0);
    assert!(planned.out.contains("rendered etc/where"), "{}", planned.out);
    assert_eq!(pair.target.read("etc/where"), "in 7\n");
    for _ in 0..2 {
        pair.up(0);
        assert_eq!((pair.target.read("etc/where"), pair.note("ran")), ("in 8\n".into(), "reload\nreload\n".into()));
    }
    // A new template and another fact at once are no change by hand.
    fact("9");
    pair.origin
        .sh("echo 'now in ${fact.rack}' > ../template; gdo env template etc/where ../template; gdo restore -q; gdo snap -q");
    pair.release();
    pair.up(0);
    assert_eq!(pair.target.read("etc/where"), "now in 9\n");
    pair.target.write("etc/where", "mine\n");
    let halted = pair.up(12);
    assert!(halted.err.contains("drift") && halted.err.contains("'etc/where'"), "{}", halted.err);
    assert_eq!(pair.target.read("etc/where"), "mine\n");
    pair.run(&["fix", "etc/where"], 0);
    pair.up(0);
    assert_eq!(pair.target.read("etc/where"), "now in 9\n");
}

#[test]
fn a_commit_that_is_applied_by_half_is_taken_back() {
    let pair = Pair::new();
    pair.origin.sh("touch ../ok");
    pair.origin.ok(&["handler", "reload", "--", "sh", "-c", "cat etc/conf >> ../ran; test -e ../ok"]);
    pair.origin.ok(&["attributes", "/etc/conf", "handler=reload"]);
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.up(0);
    pair.origin.write("etc/conf", "bad\n");
    pair.origin.write("etc/added", "added\n");
    pair.origin.sh("rm etc/other");
    pair.origin.ok(&["snap", "etc"]);
    pair.release();
    // The files are in place when the handler fails: without a way back, the host would stay with them.
    assert!(pair.up(12).err.contains("handler"));
    assert_eq!(pair.target.read("etc/conf"), "bad\n");
    let planned = pair.run(&["rollback", "-n"], 0);
    assert!(planned.out.contains("M etc/conf") && planned.out.contains("D etc/added"), "{}", planned.out);
    pair.target.sh("touch ../ok");
    for run in [planned, pair.run(&["rollback"], 0)] {
        assert!(run.out.contains("  handler reload\n"), "{}", run.out);
    }
    assert_eq!((pair.target.read("etc/conf"), pair.target.exists("etc/added")), ("old\n".to_owned(), false));
    assert_eq!(pair.note("ran"), "bad\nold\n", "the handler runs for what is there now");
    let status = pair.target.ok(&["status"]);
    assert!(status.contains("nothing differs") && status.contains("held") && !status.contains("halted"), "{status}");
    // Together with the commits before it, where both changed the same file.
    pair.run(&["unhold"], 0);
    pair.target.sh("rm ../ok");
    pair.up(12);
    let base = pair.target.ok(&["git", "rev-list", "--max-parents=0", "HEAD"]).trim().to_owned();
    pair.target.sh("touch ../ok");
    pair.run(&["rollback", &base], 0);
    assert_eq!(pair.target.read("etc/conf"), "old\n");
    assert!(pair.target.ok(&["status"]).contains("nothing differs"));
    // A command that failed is named, and begun anew when its commit comes again.
    pair.run(&["unhold"], 0);
    pair.origin.ok(&["exec", "--", "test", "-e", "../ok"]);
    pair.release();
    pair.target.sh("mv ../ok ../later");
    pair.origin.sh("touch ../ok");
    assert_eq!(pair.up(12).code, 12);
    pair.target.sh("mv ../later ../ok");
    pair.run(&["rollback"], 0);
    pair.run(&["unhold"], 0);
    pair.up(0);
    assert_eq!(pair.target.read("etc/conf"), "bad\n");
}

#[test]
fn a_handler_that_comes_after_the_file_that_asks_for_it_is_found() {
    let pair = Pair::new();
    pair.origin.ok(&["attributes", "/etc/conf", "handler=reload"]);
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap"]);
    pair.origin.ok(&["handler", "reload", "--", "sh", "-c", "cat etc/conf >> ../ran"]);
    pair.release();
    pair.up(0);
    assert_eq!(pair.note("ran"), "new\n");
}

#[test]
fn what_somebody_changes_while_files_are_laid_down_stays() {
    // The check of one file is where that happens, just before all of them get their names.
    for (what, edit) in [
        ("edited", "echo mine > etc/other"),
        ("made anew", "rm etc/other; echo mine > etc/other"),
        ("new", "echo mine > etc/new"),
        ("to go", "echo mine > etc/gone"),
        ("a second name", "echo mine > etc/linked"),
    ] {
        let pair = Pair::new();
        pair.origin.sh("echo there > etc/gone; echo one > etc/first; echo two > etc/linked");
        pair.origin.ok(&["snap"]);
        pair.release();
        pair.up(0);
        pair.origin.ok(&["attributes", "etc/conf", "validate=sh -c sh ../edit %s || true"]);
        pair.origin
            .sh("echo new > etc/conf; echo changed > etc/other; echo new > etc/new; rm etc/gone; ln -f etc/first etc/linked");
        pair.origin.ok(&["snap"]);
        pair.release();
        pair.target.write("../edit", &format!("rm -f ../edit; {edit}\n"));
        let stopped = pair.up(10);
        assert!(stopped.err.contains("somebody changed it"), "{what}: {}", stopped.err);
        let mine = pair.target.sh("cat etc/* | grep -c mine");
        assert_eq!(mine, "1\n", "{what}");
        assert_eq!(pair.target.sh("find . -name '.gdo-tmp-*'"), "", "{what}");
        // The same again says what a person decides about.
        let halted = pair.up(12);
        assert!(halted.err.contains("gdo up") && pair.target.sh("cat etc/* | grep -c mine") == "1\n", "{what}: {}", halted.err);
        pair.target.sh("rm -f etc/new; gdo fix --all -q");
        pair.up(0);
        assert_eq!(
            pair.target.sh("cat etc/* | grep mine || :; gdo status --exit-code > ../said; cat etc/conf"),
            "new\n",
            "{what}"
        );
    }
}

#[test]
fn a_command_that_changes_what_its_commit_lays_down_afterwards_halts_before_that() {
    let pair = Pair::new();
    pair.exec(&["--before", "--", "sh", "-c", "test ! -e ../here || echo by command >> etc/other"]);
    pair.origin.sh("echo changed > etc/other");
    pair.origin.ok(&["snap"]);
    let base = pair.origin.sh("gdo git rev-parse main");
    pair.origin.ok(&["ci"]);
    // Both in one commit, as a merge brings them.
    let from = pair.origin.path(".git");
    let one = pair.origin.sh(&format!(
        "git --git-dir .git -c user.name=x -c user.email=x@y commit-tree -p {} -m both 'main^{{tree}}'",
        base.trim()
    ));
    pair.origin.sh(&format!("git --git-dir .git update-ref refs/heads/both {}", one.trim()));
    pair.target.sh(&format!("git -C .git fetch -q '{}' +refs/heads/both:refs/remotes/o/main", from.display()));
    pair.target.write("../here", "");
    let halted = pair.up(12);
    assert!(halted.err.contains("drift"), "{}", halted.err);
    assert_eq!(pair.target.read("etc/other"), "other\nby command\n");
}

#[test]
fn what_is_edited_while_a_fix_goes_on_stays() {
    let pair = Pair::new();
    pair.origin.ok(&["attributes", "etc/conf", "validate=sh -c sh ../edit %s || true"]);
    pair.origin.ok(&["snap"]);
    pair.release();
    pair.up(0);
    pair.target.sh("echo drift > etc/conf; echo drift > etc/other");
    pair.target.write("../edit", "rm -f ../edit; echo mine > etc/other\n");
    let stopped = pair.run(&["fix", "--all"], 10);
    assert!(stopped.err.contains("somebody changed it"), "{}", stopped.err);
    assert_eq!((pair.target.read("etc/conf"), pair.target.read("etc/other")), ("drift\n".into(), "mine\n".into()));
    pair.run(&["fix", "--all"], 0);
    pair.run(&["fix", "--undo"], 0);
    assert_eq!((pair.target.read("etc/conf"), pair.target.read("etc/other")), ("drift\n".into(), "mine\n".into()));
}

#[test]
fn what_is_applied_by_half_is_not_forgotten_for_another_commit() {
    let pair = Pair::new();
    pair.exec(&["--", "test", "!", "-e", "../bad"]);
    pair.target.sh("touch ../bad");
    pair.release();
    pair.up(12);
    let half = pair.target.sh("gdo git rev-parse o/main").trim()[..12].to_owned();
    // A sibling of it, and where HEAD is.
    pair.target.sh("git -C .git -c user.name=x -c user.email=x@y commit-tree -p HEAD -m x 'HEAD^{tree}' > ../sibling
        git -C .git update-ref refs/remotes/o/sibling $(cat ../sibling)");
    for to in ["o/sibling", "HEAD"] {
        for more in [&["-n"][..], &[]] {
            let refused = pair.run(&[&["up", "--offline", "--to", to], more].concat(), 12);
            assert!(refused.err.contains("applied by half") && refused.err.contains(&half), "{to}: {}", refused.err);
        }
    }
    pair.target.sh("rm ../bad");
    pair.run(&["resume"], 0);
    pair.run(&["up", "--offline", "--to", "HEAD"], 0);
}

#[test]
fn an_image_without_a_machine_id_is_bound_to_the_first_machine_that_it_becomes() {
    let world = World::new();
    world.sh("mkdir -p ../o/etc ../image/etc; echo 1 > ../o/etc/conf; echo uninitialized > ../image/etc/machine-id");
    let system = |root: &str, args: &str| world.sh(&format!("gdo -q --root ../{root} {args}"));
    system("o", "init --system --type web");
    system("o", "snapshot etc");
    system("image", "init --system --type web");
    let bring = |root: &str| {
        world.sh(&format!(
            "git --git-dir ../{root}/etc/git-devops/repo fetch -q ../o/etc/git-devops/repo +refs/heads/web:refs/remotes/o/web"
        ))
    };
    let up = |root: &str| world.gdo(&["--root", &format!("../{root}"), "up", "--offline", "--to", "o/web"]).code;
    bring("image");
    assert_eq!(up("image"), 0);
    world.sh("for m in one two; do cp -a ../image ../$m; echo $m | md5sum | cut -c-32 > ../$m/etc/machine-id; done; echo 2 > ../o/etc/conf");
    system("o", "snapshot etc");
    for machine in ["one", "two"] {
        bring(machine);
        assert_eq!((up(machine), world.read(&format!("../{machine}/etc/conf"))), (0, "2\n".to_owned()));
    }
    // From then on it is a disk of that machine.
    world.sh("cp ../one/etc/machine-id ../two/etc/machine-id; echo 3 > ../o/etc/conf");
    system("o", "snapshot etc");
    bring("two");
    assert_eq!(up("two"), 65);
}
