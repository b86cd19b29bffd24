//! Hosts that were not built by us: what differs is told, put right, and kept; and what is fixed by hand.

use crate::common::pair::Pair;
use crate::common::{Run, World};

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
fn what_differs_in_owner_or_mode_alone_stays_in_sight_whatever_is_done_beside_it() {
    let host = host();
    host.sh("chmod 666 etc/other; echo hacked > etc/conf; sleep 0.1");
    expect(&host, &["fix", "etc/conf"], 0);
    assert!(host.ok(&["status"]).contains("m etc/other"));
    expect(&host, &["fix", "--all"], 0);
    assert_eq!(host.mode("etc/other"), 0o644);
    let pair = Pair::new();
    pair.target.sh("chmod 666 etc/other; sleep 0.1");
    pair.origin.write("etc/conf", "new\n");
    pair.origin.ok(&["snap", "etc/conf"]);
    pair.release();
    pair.up(0);
    assert!(pair.run(&["status"], 0).out.contains("m etc/other"));
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

/// Where a type is made, and a machine that was there before it.
struct Taken {
    origin: World,
    host: World,
}

impl Taken {
    fn new(files: &[(&str, &str)]) -> Self {
        let taken = Self { origin: World::new(), host: World::new() };
        files.iter().for_each(|(path, text)| taken.origin.write(path, text));
        taken.origin.snapshot();
        taken
    }

    fn send(&self) {
        let from = self.origin.path(".git");
        self.host.sh(&format!("git -C .git fetch -q '{}' +refs/heads/main:refs/remotes/o/main", from.display()));
    }

    fn converge(&self, code: i32) -> Run {
        expect(&self.host, &["converge", "--offline", "--to", "o/main"], code)
    }

    /// A second run does nothing, and leaves no trace.
    fn is_settled(&self) {
        let (files, log) = (all_of(&self.host), self.host.read(".git/devops/state/log"));
        let again = self.converge(0);
        assert!(again.out.contains("files: 0 repaired"), "{}", again.out);
        assert_eq!((all_of(&self.host), self.host.read(".git/devops/state/log")), (files, log));
        expect(&self.host, &["converge", "-n", "--exit-code", "--offline", "--to", "o/main"], 0);
    }
}

#[test]
fn a_machine_is_compared_and_nothing_is_written() {
    let taken = Taken::new(&[("etc/same", "same\n"), ("etc/conf", "new\n"), ("etc/mode", "mode\n"), ("etc/missing", "x\n")]);
    taken.host.sh(&format!(
        "cp -a '{}' .; rm etc/missing; chmod 600 etc/mode; echo old > etc/conf; echo > etc/free; touch -r ../tree etc; sleep 0.1",
        taken.origin.path("etc").display()
    ));
    taken.send();
    // Everything, the repository included; looking at the lock takes it, and does not write.
    let all = || taken.host.sh("find . -printf '%p %y %m %U %G %T@ %l\n' | sort; find . -type f -exec md5sum {} + | sort");
    let before = all();
    let told = expect(&taken.host, &["--json", "adopt", "o/main"], 0).out;
    assert_eq!(all(), before);
    for field in [r#""content":1"#, r#""missing":1"#, r#""type":"main""#, r#""unowned":1"#, r#""begun":false"#] {
        assert!(told.contains(field), "{field}: {told}");
    }
    let files = all_of(&taken.host);
    expect(&taken.host, &["adopt", "--begin", "o/main"], 0);
    assert_eq!(all_of(&taken.host), files);
    let status = taken.host.ok(&["status"]);
    for line in ["convergent host of type main", "M etc/conf", "D etc/missing", "A etc/free", "m etc/mode"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert!(!World::new().ok(&["status"]).contains("host of type"));
}

#[test]
fn two_hundred_edits_by_hand_are_put_right_and_can_be_had_back() {
    let taken = Taken::new(&[]);
    taken
        .origin
        .sh("mkdir -p etc/a etc/b; for n in $(seq 400); do echo $n > etc/a/$n; echo $n > etc/b/$n; done; gdo snapshot -q .");
    taken.host.sh(&format!("cp -a '{}' .", taken.origin.path("etc").display()));
    taken.send();
    expect(&taken.host, &["adopt", "--begin", "o/main"], 0);
    taken.host.sh(
        "for n in $(seq 80); do echo edit >> etc/a/$n; done; for n in $(seq 81 140); do chmod 600 etc/a/$n; done; \
         for n in $(seq 40); do rm etc/b/$n; done; for n in $(seq 41 60); do ln -sf nowhere etc/b/$n; done; for n in $(seq 30); do echo > etc/free$n; done",
    );
    let edited = all_of(&taken.host);
    let done = taken.converge(0);
    assert!(done.out.contains("100% of") && done.out.contains("not owned: 30,"), "{}", done.out);
    for dir in ["a", "b"] {
        let sums = |world: &World| world.sh(&format!("cd etc/{dir}; find . -printf '%p %y %m %T@\n' | sort; cat * | md5sum"));
        assert_eq!(sums(&taken.host), sums(&taken.origin));
    }
    assert!(taken.host.exists("etc/free30"));
    taken.is_settled();
    expect(&taken.host, &["fix", "--undo"], 0);
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(files(&all_of(&taken.host)), files(&edited));
}

#[test]
fn whose_a_file_is_decides_what_becomes_of_it() {
    let base = "1\n2\n3\n4\n5\n";
    let files = [
        ("etc/seed", "s\n"),
        ("etc/local", "l\n"),
        ("etc/merge", base),
        ("etc/both", base),
        ("x.d/x", "x\n"),
        ("gone", "g\n"),
        ("kept", "k\n"),
    ];
    let taken = Taken::new(&files);
    taken.origin.sh(
        "gdo attributes etc/seed seed; gdo attributes etc/local local; gdo attributes etc/merge merge=3way; gdo attributes etc/both merge=3way; \
         gdo attributes /x.d/ exact; gdo commit -q -m attributes",
    );
    taken.host.write("etc/seed", "mine\n");
    taken.host.write("etc/local", "mine\n");
    taken.host.write("x.d/other/y", "y\n");
    taken.send();
    taken.converge(0);
    assert_eq!((taken.host.read("etc/seed"), taken.host.read("etc/local")), ("mine\n".into(), "mine\n".into()));
    assert!(!taken.host.exists("x.d/other"));
    assert_eq!(taken.host.sh("cat .git/devops/state/quarantine/*/x.d/other/y"), "y\n");
    taken.is_settled();
    // The next version meets local changes.
    taken.origin.sh("rm gone kept; printf '1\\n2\\n3\\n4\\nnew\\n' | tee etc/merge > etc/both; gdo snapshot -q");
    taken
        .host
        .sh("echo changed > kept; printf 'mine\\n2\\n3\\n4\\n5\\n' > etc/merge; printf '1\\n2\\n3\\n4\\nmine\\n' > etc/both");
    taken.send();
    let conflict = taken.converge(3);
    assert!(conflict.err.contains("'etc/both'") && conflict.err.contains("same lines"), "{}", conflict.err);
    assert_eq!(taken.host.read("etc/merge"), "mine\n2\n3\n4\nnew\n");
    assert_eq!(taken.host.read("etc/both"), "1\n2\n3\n4\nmine\n");
    assert!(!taken.host.exists("gone") && taken.host.read("kept") == "changed\n");
    taken.host.write("etc/both", "1\n2\n3\n4\nnew\n");
    taken.converge(0);
    taken.is_settled();
    assert_eq!(taken.host.read("etc/merge"), "mine\n2\n3\n4\nnew\n", "the local change is kept");
}

#[test]
fn promises_are_kept_in_order_and_looked_at_again() {
    let taken = Taken::new(&[("etc/conf", "c\n")]);
    let add = |name: &str, script: &str| {
        std::fs::write(taken.origin.path("../p"), format!("#!/bin/sh\n{script}\n")).unwrap();
        taken.origin.ok(&["promise", "add", name, "../p"]);
    };
    add("10-a", "case $1 in check) test -e ../a;; apply) echo 10 >> ../ran; touch ../a;; esac");
    add("20-b", "case $1 in check) test -e ../b;; apply) echo 20 >> ../ran; test -e ../may && touch ../b;; esac");
    add("30-c", "# needs: 20-b\ncase $1 in check) test -e ../c;; apply) echo 30 >> ../ran; touch ../c;; esac");
    add("40-d", "case $1 in check) exit 2;; esac");
    assert_eq!(taken.origin.ok(&["promise", "list"]), "10-a\n20-b\n30-c needs 20-b\n40-d\n");
    assert_eq!(taken.origin.gdo(&["promise", "add", "x", "../p"]).code, 65);
    taken.origin.ok(&[
        "exec",
        "--idempotent",
        "--unless",
        "test -e ../made",
        "--",
        "sh",
        "-c",
        "echo made >> ../ran; touch ../made",
    ]);
    taken.origin.ok(&["exec", "--", "sh", "-c", "echo never >> ../ran"]);
    taken.origin.ok(&["ci"]);
    taken.send();
    expect(&taken.host, &["converge", "-n", "--exit-code", "--offline", "--to", "o/main"], 3);
    assert!(!taken.host.path("../ran").exists());
    let done = taken.converge(3);
    for line in ["20-b is not kept: 'apply' failed", "30-c is not kept: it needs 20-b", "40-d is not kept: 'check' failed"] {
        assert!(done.err.contains(line), "{line}: {}", done.err);
    }
    assert_eq!(taken.host.read("../ran"), "10\n20\nmade\n");
    taken.origin.ok(&["promise", "rm", "40-d"]);
    taken.origin.ok(&["ci"]);
    taken.send();
    taken.host.sh("touch ../may; rm ../ran");
    taken.converge(0);
    assert_eq!(taken.host.read("../ran"), "20\n30\n");
    taken.is_settled();
    // Two that undo each other are found out.
    add("50-e", "case $1 in check) test ! -e ../a;; apply) rm ../a;; esac");
    taken.origin.ok(&["ci"]);
    taken.send();
    let done = taken.converge(3);
    assert!(done.err.contains("10-a is not kept: it was kept"), "{}", done.err);
}

#[test]
fn the_inputs_of_a_promised_command_go_when_it_is_done_also_those_of_another_user() {
    let taken = Taken::new(&[("etc/conf", "c\n")]);
    taken.origin.sh("echo 1 > ../input; chmod 777 ..");
    let words =
        ["--user", "nobody", "--input", "../input", "--idempotent", "--unless", "test -e /tmp/none", "--", "cat", "${in}/input"];
    taken.origin.ok(&[&["exec"], &words[..]].concat());
    taken.origin.ok(&["ci"]);
    taken.send();
    taken.converge(3);
    assert_eq!(taken.host.sh("ls .git/devops/state/in"), "");
}

#[test]
fn a_check_that_fails_stops_its_own_file_alone_and_the_models_do_not_mix() {
    let taken = Taken::new(&[("etc/conf", "bad\n"), ("etc/other", "other\n")]);
    taken.origin.sh("gdo handler reload -- sh -c 'echo reload >> ../ran'; gdo ci -q; gdo attributes etc/conf 'validate=grep -q good %s' handler=reload; gdo attributes etc/other handler=reload; gdo commit -q -m x");
    taken.send();
    taken.host.sh("gdo converge -q -n --offline --to o/main > ../n 2>&1; test ! -e .git/devops/state/log");
    let done = taken.converge(3);
    assert!(done.err.contains("does not pass 'grep -q good %s'"), "{}", done.err);
    assert!(
        !taken.host.exists("etc/conf") && taken.host.read("etc/other") == "other\n" && taken.host.read("../ran") == "reload\n"
    );
    taken.origin.sh("echo good > etc/conf; gdo snapshot -q");
    taken.send();
    taken.converge(0);
    taken.is_settled();
    let refused = expect(&taken.host, &["up", "--offline", "--to", "o/main"], 65);
    assert!(refused.err.contains("gdo converge"), "{}", refused.err);
    let refused = expect(&taken.origin, &["converge", "--offline", "--to", "main"], 65);
    assert!(refused.err.contains("gdo adopt"), "{}", refused.err);
}

#[test]
fn taking_over_a_host_that_followed_a_type_loses_nothing_and_owes_nothing_of_it() {
    let taken = Taken::new(&[("etc/conf", "one\n")]);
    taken.origin.sh("gdo git branch -q other; gdo handler reload -- test ! -e ../broken; gdo attributes etc/conf handler=reload
        echo two > etc/conf; gdo snap -q; gdo ci -q");
    taken.send();
    let from = taken.origin.path(".git");
    taken.host.sh(&format!("git -C .git fetch -q '{}' +refs/heads/other:refs/remotes/o/other", from.display()));
    expect(&taken.host, &["up", "--offline", "--to", "o/main"], 0);
    taken.host.sh("touch ../broken; echo drift > etc/conf");
    expect(&taken.host, &["fix", "--all"], 12);
    let status = || taken.host.ok(&["--json", "status"]);
    assert!(status().contains(r#""handlers_owed":["reload"]"#), "{}", status());
    // The other type has no such handler, and of it nothing is applied yet.
    expect(&taken.host, &["adopt", "--begin", "o/other"], 0);
    assert!(status().contains(r#""handlers_owed":[]"#) && status().contains(r#""applied":null"#), "{}", status());
    expect(&taken.host, &["converge", "--offline", "--to", "o/other"], 0);
    assert_eq!(taken.host.read("etc/conf"), "one\n");
    // A branch with commits of this host alone is not moved off them.
    taken.host.sh("git -C .git -c user.name=x -c user.email=x@y commit-tree -p main -m x 'main^{tree}' > ../own
        git -C .git update-ref refs/heads/main $(cat ../own)");
    let refused = expect(&taken.host, &["adopt", "--begin", "o/main"], 10);
    assert!(refused.err.contains("gdo branch KEEP main"), "{}", refused.err);
    taken.host.ok(&["branch", "keep", "main"]);
    expect(&taken.host, &["adopt", "--begin", "o/main"], 0);
    // Any way to name a commit will do.
    expect(&taken.host, &["adopt", "--begin", "o/main~0"], 0);
}

#[test]
fn what_is_put_aside_keeps_its_path_however_long_and_nothing_is_lost() {
    let long = format!("a/{}/{}", "x".repeat(200), "y".repeat(200));
    let taken = Taken::new(&[("a/b/x", "x\n"), ("a%b/x", "x\n"), (&format!("{long}/x"), "x\n")]);
    taken.origin.sh("gdo attributes / exact; gdo commit -q -m exact");
    taken.host.write("a/b/mine", "one\n");
    taken.host.write("a%b/mine", "two\n");
    taken.host.write(&format!("{long}/mine"), "three\n");
    taken.host.write("a/b/more/deep", "four\n");
    taken.send();
    taken.converge(0);
    let aside = taken.host.sh("echo .git/devops/state/quarantine/*").trim().to_owned();
    for (path, text) in
        [("a/b/mine", "one\n"), ("a%b/mine", "two\n"), (&format!("{long}/mine"), "three\n"), ("a/b/more/deep", "four\n")]
    {
        assert_eq!(taken.host.read(&format!("{aside}/{path}")), text, "{path}");
        assert!(!taken.host.exists(path), "{path}");
    }
    taken.is_settled();
}

#[test]
fn nothing_in_quarantine_is_overwritten() {
    let taken = Taken::new(&[("etc/x", "x\n")]);
    taken.origin.sh("gdo attributes /etc/ exact; gdo commit -q -m exact");
    taken.host.write("etc/mine", "mine\n");
    taken.send();
    // The number of the line that the log gets next: one after 'begin'.
    taken.host.sh("mkdir -p .git/devops/state/quarantine/2/etc; echo earlier > .git/devops/state/quarantine/2/etc/mine");
    let left = taken.converge(3);
    assert!(left.err.contains("'etc/mine'") && left.err.contains("cannot be put aside"), "{}", left.err);
    assert_eq!(taken.host.read("etc/mine"), "mine\n");
    assert_eq!(taken.host.read(".git/devops/state/quarantine/2/etc/mine"), "earlier\n");
    taken.converge(0);
    assert!(!taken.host.exists("etc/mine"));
}

#[test]
fn a_file_that_is_merged_has_its_mode_and_owner_put_right() {
    let taken = Taken::new(&[("etc/merge", "1\n2\n3\n"), ("etc/plain", "1\n2\n3\n")]);
    taken.origin.sh("gdo attributes etc/merge merge=3way; gdo attributes etc/plain merge=3way; gdo commit -q -m merge");
    taken.send();
    taken.converge(0);
    taken.host.write("etc/merge", "mine\n2\n3\n");
    taken.host.write("etc/plain", "mine\n2\n3\n");
    taken.host.sh("touch -d 2001-01-01 etc/plain; chmod 600 etc/merge");
    let planned = expect(&taken.host, &["converge", "-n", "--exit-code", "--offline", "--to", "o/main"], 1);
    assert!(planned.out.starts_with("m etc/merge\nfiles: 1 would be repaired"), "{}", planned.out);
    let done = taken.converge(0);
    assert!(done.out.starts_with("m etc/merge\nfiles: 1 repaired"), "{}", done.out);
    assert_eq!((taken.host.mode("etc/merge"), taken.host.read("etc/merge")), (0o644, "mine\n2\n3\n".into()));
    taken.is_settled();
    // And where the new version is merged, too.
    taken.origin.sh("printf '1\\n2\\nnew\\n' > etc/merge; gdo snapshot -q");
    taken.host.sh("chmod 666 etc/merge");
    taken.send();
    taken.converge(0);
    assert_eq!((taken.host.mode("etc/merge"), taken.host.read("etc/merge")), (0o644, "mine\n2\nnew\n".into()));
    taken.is_settled();
}

#[test]
fn what_a_command_creates_is_found_through_symlinks_of_root_within_the_tree() {
    let taken = Taken::new(&[("etc/conf", "c\n")]);
    taken.origin.ok(&["exec", "--idempotent", "--creates", "/run/made", "--", "sh", "-c", "echo ran >> ../ran"]);
    taken.origin.ok(&["ci"]);
    taken.send();
    // An absolute symlink begins at the top of the tree, not of the machine.
    taken.host.sh("mkdir -p var/real; touch var/real/made; ln -s /var/link run; ln -s ../../var/./real var/link");
    taken.converge(0);
    assert!(!taken.host.path("../ran").exists(), "it is there");
    taken.host.sh("rm var/real/made");
    let not_kept = taken.converge(3);
    assert!(not_kept.err.contains("was applied, and is not kept"), "{}", not_kept.err);
    assert_eq!(taken.host.read("../ran"), "ran\n", "it is not there, and the command was run");
    // Where nobody can tell, it is said of what, and what to do.
    taken.host.sh("touch var/real/made; mkdir x; chmod 777 x; ln -s /var/real x/l; ln -sfn x/l run");
    let refused = taken.converge(3);
    for part in ["'/run/made'", "'l' on the way", "another user can have put there", "name the directory itself"] {
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    taken.host.sh("rm run; ln -s run run");
    let refused = taken.converge(3);
    assert!(refused.err.contains("'/run/made'") && refused.err.contains("symlinks"), "{}", refused.err);
    assert_eq!(taken.host.read("../ran"), "ran\n");
}

#[test]
fn a_rendered_file_below_a_symlink_is_drift_with_a_name() {
    let host = World::new();
    host.write("../template", "port = ${port:-80}\n");
    host.sh("mkdir -p etc/app; gdo attributes /etc/app/conf env; gdo env template etc/app/conf ../template; gdo snapshot -q .; gdo restore -q");
    let up = |code| expect(&host, &["up", "--offline", "--to", "main"], code);
    up(0);
    for script in
        ["mv etc/app etc/real; ln -s real etc/app", "rm etc/app; mv etc/real etc/app; rm etc/app/conf; mkfifo etc/app/conf"]
    {
        host.sh(script);
        let halted = up(12);
        assert!(halted.err.contains("'etc/app/conf'") && halted.err.contains("gdo fix PATH"), "{}", halted.err);
    }
    host.sh("rm etc/app/conf");
    up(0);
    assert_eq!(host.read("etc/app/conf"), "port = 80\n");
}

#[test]
fn a_protected_file_or_many_files_go_only_if_a_person_says_so() {
    let taken = Taken::new(&[("etc/keep", "keep\n"), ("etc/conf", "old\n")]);
    taken
        .origin
        .sh("mkdir many; seq 80 | while read n; do echo $n > many/$n; done; gdo attributes etc/keep protect; gdo snapshot -q .");
    taken.send();
    taken.converge(0);
    let is_untouched = |run: &Run| {
        let files = ["many/80", "etc/keep"].map(|path| taken.host.exists(path));
        assert_eq!((taken.host.read("etc/conf"), files), ("old\n".into(), [true, true]), "{}", run.out);
        assert!(run.out.contains("would be repaired"), "{}", run.out);
    };
    taken.origin.sh("rm -r many; echo new > etc/conf; gdo snapshot -q");
    taken.send();
    let log = taken.host.read(".git/devops/state/log");
    let planned = expect(&taken.host, &["converge", "-n", "--offline", "--to", "o/main"], 12);
    is_untouched(&planned);
    assert_eq!(taken.host.read(".git/devops/state/log"), log);
    let halted = taken.converge(12);
    is_untouched(&halted);
    assert!(halted.err.contains("81 files of") && halted.err.contains("gdo converge --yes-delete 81"), "{}", halted.err);
    assert!(taken.host.ok(&["status"]).contains("81 files of"), "{}", taken.host.ok(&["status"]));
    expect(&taken.host, &["converge", "--offline", "--to", "o/main", "--yes-delete", "81"], 0);
    assert!(!taken.host.exists("many") && taken.host.read("etc/conf") == "new\n");
    taken.is_settled();
    for (script, what) in
        [("rm etc/keep", "gone"), (": > etc/keep", "emptied"), ("rm etc/keep; ln -s conf etc/keep", "a symlink")]
    {
        taken.origin.sh(&format!("{script}; gdo snapshot -q"));
        taken.send();
        let halted = taken.converge(12);
        assert!(halted.err.contains("'etc/keep'") && halted.err.contains("protected"), "{what}: {}", halted.err);
        assert_eq!(taken.host.read("etc/keep"), "keep\n", "{what}");
        taken.origin.sh("rm -f etc/keep; gdo restore -q --source HEAD~1 etc/keep; gdo snapshot -q");
    }
    // What is not there can be laid down, and what was changed by hand put right.
    taken.origin.sh("echo better > etc/keep; gdo snapshot -q");
    taken.host.sh("rm etc/keep");
    taken.send();
    taken.converge(0);
    assert_eq!(taken.host.read("etc/keep"), "better\n");
}

#[test]
fn what_is_put_aside_counts_as_gone() {
    let taken = Taken::new(&[("d/x", "x\n")]);
    taken.origin.sh("gdo attributes /d/ exact; gdo commit -q -m exact");
    taken.host.sh("mkdir d; seq 60 | while read n; do echo $n > d/$n; done");
    taken.send();
    let halted = taken.converge(12);
    assert!(halted.err.contains("--yes-delete 60") && taken.host.exists("d/60"), "{}", halted.err);
    expect(&taken.host, &["converge", "--offline", "--to", "o/main", "--yes-delete", "60"], 0);
    assert!(!taken.host.exists("d/60"));
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let taken = Taken::new(&[("etc/first", "x\n")]);
    taken.origin.sh("mkdir boot; head -c 100000 /dev/urandom > boot/kernel; gdo snapshot -q .");
    taken.send();
    let script = "mkdir -p boot; mount -t tmpfs -o size=64k,mode=755 none boot; \
                  if gdo converge --offline --to o/main; then exit 99; else test $? = 12; fi; test ! -e etc/first; ls -A boot | wc -l";
    let said = taken.host.sh(&format!("unshare -m sh -ec '{script}' 2>&1"));
    assert!(said.contains("'boot'") && said.contains("are needed") && said.contains("gdo converge"), "{said}");
    assert!(said.trim().ends_with('0'), "{said}");
    taken.host.sh("rmdir boot");
    taken.converge(0);
}
