//! Commands that outlive their run, what they say and read, and what becomes of a host whose log or start fails.

use crate::common::World;
use crate::common::pair::{Pair, echo};

/// A command that outlives whoever started it: it begins with a line, and ends with another when it may.
fn slow(guard: &[&'static str]) -> Vec<&'static str> {
    let script = "echo begin >> ../ran; echo said; if test -e ../kill; then rm ../kill; kill -9 $(cat ../gdo); \
                  for n in $(seq 2000); do test ! -e ../go || break; sleep 0.02; echo more; done; fi; touch made-it; echo end >> ../ran";
    [guard, &["--", "sh", "-c", script]].concat()
}

/// Replays at the target, and is killed while the command runs.
fn cut_off(pair: &Pair) {
    pair.target.sh("touch ../kill; sh -c 'echo $$ > ../gdo; exec gdo up --offline --to o/main' || test $? = 137");
}

#[test]
fn a_command_that_outlived_its_run_is_waited_for() {
    for (guard, after) in [(&["--idempotent"][..], "begin\nend\nbegin\nend\n"), (&["--creates", "/made-it"], "begin\nend\n")] {
        let pair = Pair::new();
        pair.origin.ok(&["handler", "reload", "--", "true"]);
        pair.exec(&slow(guard));
        pair.release();
        cut_off(&pair);
        let halted = pair.up(12);
        assert!(halted.err.contains("command-running") && halted.err.contains("kill -- -"), "{}", halted.err);
        let process = halted.err.split("as process ").nth(1).unwrap().split(',').next().unwrap().to_owned();
        let line = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
        assert!(line.contains("begin >> ../ran"), "{process}: {line}");
        let refused = pair.run(&["resume", "--rerun"], 12);
        assert!(refused.err.contains("still runs"), "{}", refused.err);
        assert_eq!(pair.run(&["rollback"], 12).code, 12);
        pair.target.sh("echo drift >> etc/conf");
        assert!(pair.run(&["fix", "--all"], 12).err.contains("still runs"));
        assert_eq!(pair.note("ran"), "begin\n");
        // It goes on writing what it has to say, though nobody hears it.
        pair.target.sh(&format!("touch ../go; while test -e /proc/{process}/exe; do sleep 0.02; done"));
        assert_eq!(pair.note("ran"), "begin\nend\n", "{guard:?}: it was not ended by what it writes");
        pair.up(0);
        assert_eq!(pair.note("ran"), after, "{guard:?}");
        let number = pair.run(&["log", "--host"], 0).out.lines().rfind(|line| line.contains(" run ")).unwrap().to_owned();
        let said = pair.run(&["log", "--output", number.split(' ').next().unwrap()], 0).out;
        assert!(said.starts_with("said\n") && said.contains("more\n"), "{said}");
    }
}

#[test]
fn what_outlived_its_run_for_ever_is_left_alone_by_a_persons_word() {
    let pair = Pair::new();
    pair.exec(&[
        "--idempotent",
        "--",
        "sh",
        "-c",
        "test ! -e ../gdo || { sleep 1000 & echo $! > ../daemon; kill -9 $(cat ../gdo); }",
    ]);
    pair.release();
    cut_off(&pair);
    let halted = pair.up(12);
    assert!(halted.err.contains("command-running"), "{}", halted.err);
    pair.run(&["resume", "--done"], 0);
    pair.target.sh("kill -0 $(cat ../daemon); kill $(cat ../daemon)");
    pair.up(0);
}

#[test]
fn a_handler_that_outlived_its_run_is_waited_for() {
    let pair = Pair::new();
    let script = "echo reload >> ../ran; test ! -e ../kill || { rm ../kill; kill -9 $(cat ../gdo); for n in $(seq 2000); do test ! -e ../go || \
                  break; sleep 0.02; done; echo end >> ../ran; }";
    pair.origin.ok(&["handler", "reload", "--", "sh", "-c", script]);
    pair.origin.ok(&["attributes", "etc/conf", "handler=reload"]);
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap"]);
    pair.release();
    cut_off(&pair);
    for words in [&["up", "--offline", "--to", "o/main"][..], &["rollback"]] {
        let halted = pair.run(words, 12);
        assert!(halted.err.contains("handler 'reload' still runs"), "{}", halted.err);
    }
    assert_eq!(pair.note("ran"), "reload\n");
    pair.target.sh("touch ../go; for n in $(seq 500); do ! grep -q end ../ran || break; sleep 0.02; done; sleep 0.2");
    pair.up(0);
    assert_eq!(pair.note("ran"), "reload\nend\nreload\n");
}

#[test]
fn a_daemon_that_a_command_started_may_write_on() {
    let pair = Pair::new();
    pair.exec(&["--", "sh", "-c", "echo started; (for n in $(seq 500); do test ! -e ../go || break; sleep 0.02; done; echo later; echo alive > ../daemon) &"]);
    pair.origin.sh("touch ../go");
    pair.release();
    pair.up(0);
    pair.target.sh("touch ../go; for n in $(seq 500); do test ! -s ../daemon || exit 0; sleep 0.02; done; exit 1");
    let log = pair.run(&["log", "--host"], 0).out;
    let line = log.lines().find(|line| line.contains(" run ")).unwrap();
    assert!(line.contains("process=") && line.contains("started="), "{line}");
    assert_eq!(pair.run(&["log", "--output", line.split(' ').next().unwrap()], 0).out, "started\nlater\n");
    assert_eq!(
        pair.target.sh("stat -c %a .git/devops/state/output/*"),
        pair.target.sh("for f in .git/devops/state/output/*; do echo 600; done")
    );
}

#[test]
fn a_command_that_writes_without_end_does_not_fill_the_disk() {
    let pair = Pair::new();
    pair.exec(&["--timeout", "3", "--", "sh", "-c", "test ! -e ../much || { echo first; yes; }"]);
    pair.release();
    pair.target.sh("touch ../much");
    let most = std::thread::scope(|scope| {
        let run = scope.spawn(|| pair.up(12));
        let mut most = 0;
        while !run.is_finished() {
            let taken = pair.target.sh("du -s --block-size=1 .git/devops/state | cut -f1").trim().parse::<u64>().unwrap();
            most = most.max(taken);
        }
        assert!(run.join().unwrap().err.contains("took too long"));
        most
    });
    assert!(most < 1 << 30, "{most}");
    let taken = pair.target.sh("cat .git/devops/state/output/* | wc -c; cat .git/devops/state/output/* | head -n 1");
    let (n_bytes, first) = taken.trim().split_once('\n').unwrap();
    assert!(n_bytes.parse::<u64>().unwrap() < (1 << 20) + 100 && first == "first", "{taken}");
}

#[test]
fn what_was_said_long_ago_goes_unless_it_is_still_asked_for() {
    let pair = Pair::new();
    pair.exec(&["--", "sh", "-c", "echo why; test ! -e ../bad"]);
    pair.release();
    pair.target.sh("touch ../bad");
    let halted = pair.up(12);
    let number = halted.err.split("gdo log --output ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    // Sixty more, of which the older ones were said 31 days ago, as was what the host stands at.
    let make = "cd .git/devops/state/output; for n in $(seq 1001 1060); do echo $n > $n; done; touch -d '31 days ago' NUMBER $(seq 1001 1040); touch -d '29 days ago' 1005; echo ours > note";
    pair.target.sh(&make.replace("NUMBER", &number));
    pair.up(12);
    let left = pair.target.sh("cd .git/devops/state/output; ls | sort -n | tr '\\n' ' '");
    let newest: Vec<String> = (1011..=1060).map(|n| n.to_string()).collect();
    assert_eq!(left.trim(), format!("note {number} 1005 {}", newest.join(" ")));
    assert_eq!(pair.run(&["log", "--output", &number], 0).out, "why\n");
    let gone = pair.run(&["log", "--output", "1001"], 9);
    assert!(gone.err.contains("number 1001") && gone.err.contains("gdo log --host"), "{}", gone.err);
    // When it was decided about, it goes like any other.
    pair.target.sh(&format!("rm ../bad; gdo resume -q; touch -d '31 days ago' .git/devops/state/output/{number}"));
    pair.up(0);
    assert_eq!(pair.run(&["log", "--output", &number], 9).code, 9);
}

#[test]
fn a_command_has_no_terminal() {
    let pair = Pair::new();
    pair.exec(&["--", "sh", "-c", "if (: < /dev/tty) 2>/dev/null; then echo yes; else echo no; fi > ../tty"]);
    pair.release();
    // On a terminal of its own, where it would be stopped.
    pair.target.sh("script -qec 'gdo up --offline --to o/main' /dev/null < /dev/null > ../said; cat ../tty");
    assert_eq!(pair.note("tty"), "no\n");
}

#[test]
fn another_user_reads_its_inputs_and_has_its_own_home() {
    let pair = Pair::new();
    pair.origin.sh("echo secret > ../input; chmod 600 ../input");
    pair.target.sh("touch ../later");
    let script = "id -un; echo $HOME; cat \"$1/input\"; stat -c %a \"$1\"";
    pair.exec(&["--user", "nobody", "--input", "../input", "--", "sh", "-c", script, "sh", "${in}"]);
    pair.exec(&["--user", "nobody", "--input", "../input", "--unless", "true", "--", "true"]);
    pair.release();
    pair.up(0);
    let log = pair.run(&["log", "--host"], 0).out;
    let line = log.lines().find(|line| line.contains(" run ")).unwrap();
    let home = pair.target.sh("getent passwd nobody | cut -d: -f6");
    let said = pair.run(&["log", "--output", line.split(' ').next().unwrap()], 0).out;
    assert_eq!(said, format!("nobody\n{home}secret\n700\n"));
    assert_eq!(pair.target.sh("ls -A .git/devops/state/in"), "", "also of what was not needed");
    // Others may have theirs there at this moment.
    assert_eq!(pair.target.sh("grep -lx secret /run/git-devops/*/*/input 2>/dev/null || :"), "");
}

#[test]
fn inputs_go_with_a_word_of_a_person() {
    for word in ["--done", "skip"] {
        let pair = Pair::new();
        pair.origin.sh("echo x > ../input");
        pair.exec(&["--input", "../input", "--", "sh", "-c", "test ! -e ../gdo || kill -9 $(cat ../gdo)"]);
        pair.release();
        cut_off(&pair);
        let halted = pair.up(12);
        assert_ne!(pair.target.sh("ls -A .git/devops/state/in"), "");
        if word == "skip" {
            let skip = halted.err.lines().find(|line| line.contains("gdo skip")).unwrap();
            pair.run(&["skip", skip.split_whitespace().nth(2).unwrap(), "--reason", "no"], 0);
        } else {
            pair.run(&["resume", word], 0);
        }
        assert_eq!(pair.target.sh("ls -A .git/devops/state/in"), "", "{word}");
    }
}

#[test]
fn a_start_that_fails_is_told_and_tried_again() {
    let world = World::new();
    // The running system, with a 'systemctl' that fails or not.
    let script = "mount -t tmpfs none /usr/local/sbin; printf \"#!/bin/sh\\necho \\$1 >> $PWD/../asked; echo no such luck; test -e $PWD/../can\\n\" > \
                  /usr/local/sbin/systemctl; chmod 755 /usr/local/sbin/systemctl; export GIT_DIR=$PWD/../repo GIT_WORK_TREE=/; \"$@\"";
    world.write("../in-system", script);
    let run = |words: &str| world.sh(&format!("unshare -m sh -e ../in-system {words} 2>&1 || echo code $?"));
    run("gdo --git-dir ../repo --work-tree / init");
    world.write("owned", "x\n");
    run("gdo snapshot -q owned");
    let said = run("gdo reboot");
    assert!(said.contains("exit code 1: no such luck") && said.ends_with("code 13\n"), "{said}");
    world.sh("touch ../can");
    assert_eq!(world.read("../asked"), "reboot\n");
    run("gdo resume --done");
    run("gdo ci");
    // As a target, which is before it.
    world.sh("git --git-dir ../repo update-ref refs/heads/later HEAD; git --git-dir ../repo update-ref refs/heads/main HEAD~1; rm -r ../repo/devops/state/log ../can ../asked");
    run("sh -c 'gdo git log --oneline --all'");
    for _ in 0..2 {
        let said = run("gdo up -r --offline --to later");
        assert!(said.contains("no such luck") && said.contains("gdo up -r") && said.ends_with("code 13\n"), "{said}");
    }
    world.sh("touch ../can");
    let said = run("gdo up -r --offline --to later");
    assert!(!said.contains("luck") && said.ends_with("code 13\n"), "{said}");
    assert_eq!(world.read("../asked"), "reboot\n".repeat(3));
}

#[test]
fn a_damaged_log_is_put_aside_and_the_host_begins_anew() {
    let pair = Pair::new();
    pair.exec(&echo("a"));
    pair.release();
    pair.up(0);
    pair.target.sh("sed -i '3s/commit=./commit=x/' .git/devops/state/log");
    let damaged = pair.up(8);
    assert!(damaged.err.contains("line 2") && damaged.err.contains("gdo adopt --begin"), "{}", damaged.err);
    let found = pair.run(&["check"], 8);
    assert!(found.out.contains("state/log' at byte ") && found.out.contains("gdo adopt --begin"), "{}", found.out);
    let begun = pair.run(&["adopt", "--begin", "o/main"], 0);
    assert!(begun.err.contains("quarantine/log-1"), "{}", begun.err);
    pair.target.sh("grep -q commit=x .git/devops/state/quarantine/log-1");
    pair.run(&["check"], 0);
    assert!(pair.target.ok(&["status"]).contains("convergent"));
    // What was said before is still under its number, and no other command gets that.
    let kept = pair.target.sh("ls .git/devops/state/output | tail -n 1");
    let first = pair.run(&["log", "--host"], 0).out.lines().last().unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(first, kept.trim().parse::<u64>().unwrap() + 1);
}

#[test]
fn an_option_that_is_none_is_not_taken_for_the_command() {
    let world = World::new();
    world.write("conf", "x\n");
    world.snapshot();
    for words in [&["-x", "--", "touch", "made"][..], &["--never", "touch", "made"]] {
        let run = world.gdo(&[&["exec"], words].concat());
        assert!(run.code == 2 && run.err.contains(&format!("no option '{}'", words[0])), "{}{}", run.code, run.err);
    }
    assert_eq!(world.gdo(&["handler", "reload", "-n", "true"]).code, 2);
    assert!(!world.exists("made"));
    assert!(!world.ok(&["log", "--host"]).contains("run"));
}
