//! Hosts that were not built by us: what differs is told, put right, and kept; and what is fixed by hand.

mod common;

use common::{Run, World};

/// Makes a host with a few files and a handler, all applied.
fn host() -> World {
    let host = World::new();
    for (path, text) in [("etc/conf", "old\n"), ("etc/other", "other\n"), ("etc/gone", "gone\n")] {
        host.write(path, text);
    }
    host.sh("head -c 300000 /dev/urandom > etc/big; ln -s conf etc/link");
    host.snapshot();
    host.ok(&["handler", "reload", "--", "sh", "-c", "echo reload >> ../ran; test ! -e ../bad"]);
    host.ok(&["ci"]);
    host.ok(&["attributes", "etc/conf", "handler=reload"]);
    host.ok(&["commit", "-m", "handler"]);
    host
}

fn expect(host: &World, args: &[&str], code: i32) -> Run {
    let run = host.gdo(args);
    assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    run
}

/// Returns everything that there is to know of the files of a tree, without the repository.
fn all_of(host: &World) -> String {
    host.sh("find . -path ./.git -prune -o -printf '%p %y %m %U %G %T@ %l\n' | sort; find . -path ./.git -prune -o -type f -exec md5sum {} + | sort")
}

#[test]
fn a_fix_brings_back_what_was_applied_and_keeps_what_lay_there() {
    let host = host();
    let applied = all_of(&host);
    host.sh("echo hacked > etc/conf; rm etc/gone; chmod 600 etc/other; head -c 300000 /dev/urandom > etc/big; ln -sf x etc/link; chmod 700 etc");
    let changed = all_of(&host);
    let planned = expect(&host, &["fix", "-n", "--all"], 0);
    assert!(planned.out.contains("would lay down 6"), "{}", planned.out);
    assert_eq!(all_of(&host), changed);
    expect(&host, &["fix", "--all"], 0);
    assert_eq!(all_of(&host), applied);
    assert_eq!(host.read("../ran"), "reload\n");
    assert!(host.ok(&["status"]).contains("nothing differs"));
    let log = host.read(".git/devops/state/log");
    assert!(expect(&host, &["fix", "--all"], 0).out.contains("nothing differs"));
    assert_eq!(host.read(".git/devops/state/log"), log, "nothing was done, and nothing is noted");
    // And back, and back again.
    expect(&host, &["fix", "--undo"], 0);
    let without_dirs = |text: String| text.lines().filter(|line| !line.contains(" d ")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_dirs(all_of(&host)), without_dirs(changed));
    expect(&host, &["fix", "--undo"], 0);
    assert_eq!(without_dirs(all_of(&host)), without_dirs(applied));
    assert_eq!(host.read("../ran"), "reload\nreload\nreload\n");
    assert!(expect(&host, &["fix", "--undo", "999"], 9).err.contains("kept are"));
    host.ok(&["check", "--data"]);
}

#[test]
fn only_what_is_named_is_fixed_and_what_is_not_owned_stays() {
    let host = host();
    host.sh("mkdir free; echo mine > free/file; gdo rm --cached -q free 2>/dev/null || true; echo 1 > etc/conf; echo 2 > etc/other; echo 3 > etc/new");
    expect(&host, &["fix", "etc/other"], 0);
    assert_eq!(
        (host.read("etc/conf"), host.read("etc/other"), host.read("etc/new")),
        ("1\n".into(), "other\n".into(), "3\n".into())
    );
    assert_eq!(expect(&host, &["fix", "nothing"], 9).code, 9);
    assert_eq!(expect(&host, &["fix"], 2).code, 2);
    assert_eq!(expect(&World::new(), &["fix", "--all"], 2).code, 2, "no type is followed there");
}

#[test]
fn a_handler_of_a_fix_is_owed_until_it_succeeds() {
    let host = host();
    host.sh("touch ../bad; echo hacked > etc/conf");
    let halted = expect(&host, &["fix", "etc/conf"], 12);
    assert!(halted.err.contains("handler") && halted.err.contains("gdo log --output"), "{}", halted.err);
    assert_eq!(host.read("etc/conf"), "old\n");
    host.sh("rm ../bad ../ran");
    host.write("etc/other", "x\n");
    expect(&host, &["fix", "--all"], 0);
    assert_eq!(host.read("../ran"), "reload\n", "though etc/other asks for none");
}

#[test]
fn what_lay_there_goes_when_it_is_old_and_there_are_many() {
    let host = host();
    let fix = |n: usize, time: &str| {
        host.write("etc/other", &format!("{n}\n"));
        let run = host.gdo_with(&["fix", "-q", "etc/other"], &[("GIT_DEVOPS_TIME", time)]);
        assert_eq!(run.code, 0, "{}", run.err);
    };
    (0..52).for_each(|n| fix(n, "1700000000"));
    let count = || host.sh("git for-each-ref refs/devops/undo | wc -l").trim().to_owned();
    assert_eq!(count(), "52", "they are young");
    fix(52, "1800000000");
    assert_eq!(count(), "50");
    expect(&host, &["fix", "--undo"], 0);
    assert_eq!(host.read("etc/other"), "52\n");
}
