//! Machine types: begun, taken, merged into each other, and single commits taken back.

use crate::common::World;

/// A host with a base, of type `main`.
fn base() -> World {
    let host = World::new();
    host.write("etc/conf", "one\ntwo\nthree\nfour\nfive\n");
    host.write("etc/other", "other\n");
    host.snapshot();
    host
}

/// A second host that has applied what the first one has.
fn target(origin: &World, branch: &str) -> World {
    let target = World::new();
    send(origin, &target);
    target.ok(&["up", "--offline", "--to", &format!("o/{branch}")]);
    target
}

/// Brings the branches of one to the other.
fn send(from: &World, to: &World) {
    to.sh(&format!("git -C .git fetch -q '{}' '+refs/heads/*:refs/remotes/o/*'", from.path(".git").display()));
}

fn ran(host: &World) -> String {
    std::fs::read_to_string(host.path("../ran")).unwrap_or_default()
}

/// Adds a command that writes a word beside the tree, and one that takes it out again.
fn exec(host: &World, word: &str) {
    let undo = format!("sed -i /{word}/d ../ran");
    host.ok(&["exec", "--undo", &undo, "--", "sh", "-c", &format!("echo {word} >> ../ran")]);
}

fn rev(host: &World, rev: &str) -> String {
    host.ok(&["git", "rev-parse", rev]).trim().to_owned()
}

#[test]
fn a_type_is_begun_taken_and_left_only_along_its_own_past() {
    let host = base();
    let first = rev(&host, "HEAD");
    host.ok(&["fork", "web"]);
    assert!(host.ok(&["branch"]).contains("* web"), "{}", host.ok(&["branch"]));
    assert_eq!(host.gdo(&["fork", "web"]).code, 10);
    // What is applied is the beginning of both.
    host.ok(&["switch", "main"]);
    host.ok(&["switch", "web"]);
    host.write("etc/web", "web\n");
    host.snapshot();
    let refused = host.gdo(&["switch", "main"]);
    assert_eq!(refused.code, 65);
    assert!(refused.err.contains("another past") && refused.err.contains("gdo adopt main --begin"), "{}", refused.err);
    // A host of the base becomes one of the new type, and gets the rest.
    let other = target(&host, "main");
    assert!(!other.exists("etc/web"));
    let web = rev(&other, "o/web");
    other.ok(&["git", "update-ref", "refs/heads/web", &web]);
    assert_eq!(rev(&other, "HEAD"), first);
    other.ok(&["switch", "web"]);
    assert_eq!(rev(&other, "web"), first, "a branch is what is applied");
    assert!(other.ok(&["status"]).contains("of type web"), "{}", other.ok(&["status"]));
    other.ok(&["up", "--offline", "--to", "o/web"]);
    assert_eq!(other.read("etc/web"), "web\n");
    assert_eq!(rev(&other, "web"), web);
}

#[test]
fn a_branch_that_goes_loses_no_commits_by_mistake() {
    let host = base();
    host.ok(&["branch", "old"]);
    assert_eq!(host.gdo(&["branch", "old"]).code, 10);
    host.write("etc/conf", "new\n");
    host.snapshot();
    host.ok(&["branch", "later"]);
    host.ok(&["branch", "-d", "old"]);
    let current = host.gdo(&["branch", "-d", "main"]);
    assert_eq!(current.code, 10, "{}", current.err);
    host.ok(&["rollback", "1"]);
    // Now 'later' alone has the commit.
    let refused = host.gdo(&["branch", "-d", "later"]);
    assert_eq!(refused.code, 10, "{}", refused.err);
    let later = rev(&host, "later");
    let switched = host.gdo(&["switch", "later"]);
    assert_eq!(switched.code, 10, "{}{}", switched.out, switched.err);
    assert_eq!(rev(&host, "later"), later);
    host.ok(&["branch", "keep", "later"]);
    host.ok(&["switch", "later"]);
    assert_eq!(host.gdo(&["branch", "bad..name"]).code, 65);
    assert_eq!(host.gdo(&["branch", "-d", "none"]).code, 9);
}

/// A host of type `web` with two commits of its own, beside a `main` that went on with three: commands on both sides, a file changed on both.
fn diverged() -> (World, World) {
    let main = base();
    let web = target(&main, "main");
    web.ok(&["fork", "web"]);
    exec(&web, "w1");
    web.write("etc/conf", "one\ntwo\nthree\nfour\nFIVE\n");
    web.ok(&["snap"]);
    web.ok(&["ci"]);
    exec(&main, "m1");
    main.write("etc/conf", "ONE\ntwo\nthree\nfour\nfive\n");
    main.write("etc/new", "new\n");
    main.ok(&["snap", "etc"]);
    exec(&main, "m2");
    main.ok(&["ci"]);
    send(&main, &web);
    (main, web)
}

#[test]
fn a_merge_brings_files_and_commands_of_both_in_order_and_once() {
    let (main, web) = diverged();
    let old = target(&web, "web");
    assert_eq!(ran(&old), "w1\n");
    web.ok(&["merge", "o/main", "--offline"]);
    assert_eq!(web.read("etc/conf"), "ONE\ntwo\nthree\nfour\nFIVE\n");
    assert_eq!(web.read("etc/new"), "new\n");
    assert_eq!(ran(&web), "w1\nm1\nm2\n");
    assert!(web.ok(&["status"]).contains("nothing differs"), "{}", web.ok(&["status"]));
    assert!(web.ok(&["merge", "o/main", "--offline"]).contains("nothing to merge"));
    assert!(web.gdo(&["git", "rev-parse", "--verify", "-q", "refs/devops/next"]).code != 0);
    // One of the old type replays the other side's commands, once.
    send(&web, &old);
    old.ok(&["up", "--offline", "--to", "o/web"]);
    old.ok(&["up", "--offline", "--to", "o/web"]);
    assert_eq!(ran(&old), "w1\nm1\nm2\n");
    assert_eq!(old.read("etc/conf"), web.read("etc/conf"));
    // One that comes from the other side has another past, and is told so.
    send(&web, &main);
    assert_eq!(main.gdo(&["up", "--offline", "--to", "o/web"]).code, 65);
    // The other type takes all of it in one step: nothing is to be merged there.
    main.ok(&["merge", "o/web", "--offline"]);
    assert_eq!((main.read("etc/conf"), ran(&main)), (web.read("etc/conf"), "m1\nm2\nw1\n".to_owned()));
}

#[test]
fn conflicts_are_settled_beside_and_never_in_the_files() {
    let (main, web) = diverged();
    main.write("etc/conf", "main\n");
    main.sh("chmod 600 etc/other; chmod 700 etc");
    main.snapshot();
    web.write("etc/conf", "web\n");
    web.sh("chmod 640 etc/other; rm etc/other; echo else > etc/other; chmod 640 etc/other");
    web.snapshot();
    send(&main, &web);
    let head = rev(&web, "HEAD");
    let conflict = web.gdo(&["merge", "o/main", "--offline"]);
    assert_eq!(conflict.code, 10, "{}{}", conflict.out, conflict.err);
    assert!(
        conflict.out.contains("conflict in etc/conf") && conflict.err.contains("gdo merge --continue"),
        "{}{}",
        conflict.out,
        conflict.err
    );
    assert_eq!((web.read("etc/conf"), rev(&web, "HEAD")), ("web\n".to_owned(), head.clone()));
    let files = web.path(".git/devops/state/merge/files");
    assert!(std::fs::read_to_string(files.join("etc/conf")).unwrap().contains("<<<<<<<"));
    let unsettled = web.gdo(&["merge", "--continue", "--offline"]);
    assert_eq!(unsettled.code, 10);
    assert!(unsettled.err.contains("is not settled") && unsettled.err.contains("markers"), "{}", unsettled.err);
    std::fs::write(files.join("etc/conf"), "both\n").unwrap();
    // The metadata differs on both sides, too: one key at a time, and never guessed.
    let meta: Vec<&str> =
        conflict.out.lines().filter_map(|line| line.strip_prefix("conflict in ")).filter(|path| path.contains("meta")).collect();
    assert_eq!(meta.len(), 1, "{}", conflict.out);
    let unsettled = web.gdo(&["merge", "--continue", "--offline"]);
    assert_ne!(unsettled.code, 0);
    assert_eq!(web.gdo(&["merge", "--take", "theirs", "etc/none"]).code, 9);
    web.ok(&["merge", "--take", "theirs", meta[0]]);
    web.ok(&["merge", "--continue", "--offline", "-m", "together"]);
    assert_eq!(web.read("etc/conf"), "both\n");
    assert_eq!(web.sh("stat -c %a etc/other").trim(), "600");
    assert_eq!(web.ok(&["git", "log", "-1", "--format=%s %P"]).trim(), format!("together {head} {}", rev(&web, "o/main")));
    assert!(!web.exists(".git/devops/state/merge"));
    assert_eq!(web.gdo(&["merge", "--continue"]).code, 9);
}

#[test]
fn a_merge_that_is_given_up_leaves_nothing() {
    let (main, web) = diverged();
    main.write("etc/conf", "main\n");
    main.snapshot();
    send(&main, &web);
    let tree = web.read("etc/conf");
    assert_eq!(web.gdo(&["merge", "o/main", "--offline"]).code, 10);
    let second = web.gdo(&["merge", "o/main", "--offline"]);
    assert!(second.code == 10 && second.err.contains("--abort"), "{}", second.err);
    web.ok(&["merge", "--abort"]);
    assert_eq!(web.gdo(&["merge", "--abort"]).code, 9);
    assert_eq!(web.read("etc/conf"), tree);
    // HEAD that moved makes a merge stale.
    assert_eq!(web.gdo(&["merge", "o/main", "--offline"]).code, 10);
    web.write("etc/other", "changed\n");
    web.snapshot();
    web.ok(&["merge", "--take", "ours", "etc/conf"]);
    let stale = web.gdo(&["merge", "--continue", "--offline"]);
    assert!(stale.code == 10 && stale.err.contains("HEAD moved"), "{}", stale.err);
}

#[test]
fn a_merge_that_halts_is_applied_by_up_or_given_up() {
    let (main, web) = diverged();
    main.sh("touch ../ok");
    main.ok(&["exec", "--", "test", "-e", "../ok"]);
    main.ok(&["ci"]);
    send(&main, &web);
    // Drift halts before anything is written, and then it can be given up.
    web.write("etc/conf", "drift\n");
    assert_eq!(web.gdo(&["merge", "o/main", "--offline"]).code, 12);
    let busy = web.gdo(&["snapshot", "-m", "x"]);
    assert!(busy.code == 10 && busy.err.contains("gdo abort"), "{}", busy.err);
    web.ok(&["abort"]);
    web.ok(&["restore"]);
    let halted = web.gdo(&["merge", "o/main", "--offline"]);
    assert_eq!(halted.code, 12, "{}", halted.err);
    assert_eq!(web.gdo(&["abort"]).code, 12);
    web.sh("touch ../ok");
    web.ok(&["resume"]);
    assert_ne!(web.gdo(&["git", "rev-parse", "--verify", "-q", "refs/devops/next"]).code, 0);
    assert_eq!(ran(&web), "w1\nm1\nm2\n");
    web.write("etc/new", "newer\n");
    web.snapshot();
}

#[test]
fn a_revert_takes_back_files_and_commands_everywhere() {
    let host = base();
    host.ok(&["exec", "--undo", "rm made; sed -i /m/d ../ran", "--", "sh", "-c", "echo m >> ../ran; echo made > etc/made"]);
    host.write("etc/conf", "changed\n");
    host.ok(&["snap", "etc/conf"]);
    host.ok(&["ci"]);
    let (files, command) = (rev(&host, "HEAD"), rev(&host, "HEAD~1"));
    let other = target(&host, "main");
    assert_eq!(ran(&other), "m\n");
    host.write("etc/other", "later\n");
    host.snapshot();
    host.ok(&["revert", &files, "--offline"]);
    assert_eq!(
        (host.read("etc/conf"), host.read("etc/other")),
        ("one\ntwo\nthree\nfour\nfive\n".to_owned(), "later\n".to_owned())
    );
    assert!(host.ok(&["git", "log", "-1", "--format=%B"]).contains(&files));
    // An undoing that does not bring back what was there halts here, before any other host sees it.
    let halted = host.gdo(&["revert", &command, "--offline"]);
    assert_eq!(halted.code, 12, "{}{}", halted.out, halted.err);
}

#[test]
fn an_undone_command_is_undone_everywhere_and_can_be_had_again() {
    let host = base();
    host.write("../seed", "x");
    let undo = "rm etc/made; sed -i /m/d ../ran";
    host.ok(&["exec", "--undo", undo, "--", "sh", "-c", "echo m >> ../ran; echo made > etc/made"]);
    host.ok(&["ci"]);
    let command = rev(&host, "HEAD");
    let other = target(&host, "main");
    assert_eq!((ran(&other), other.read("etc/made")), ("m\n".to_owned(), "made\n".to_owned()));
    host.ok(&["revert", &command, "--offline"]);
    assert!(ran(&host).is_empty() && !host.exists("etc/made"));
    send(&host, &other);
    other.ok(&["up", "--offline", "--to", "o/main"]);
    assert!(ran(&other).is_empty() && !other.exists("etc/made"), "{}", ran(&other));
    assert!(other.ok(&["status"]).contains("nothing differs"));
    // The revert can be taken back in turn.
    let revert = rev(&host, "HEAD");
    host.ok(&["revert", &revert, "--offline"]);
    assert_eq!((ran(&host), host.read("etc/made")), ("m\n".to_owned(), "made\n".to_owned()));
    // What was never applied here, the base, and what nothing is left of.
    assert_eq!(host.gdo(&["revert", &format!("{revert}^{{tree}}")]).code, 9);
    let root = rev(&host, "HEAD~3");
    assert_eq!(host.gdo(&["revert", &root, "--offline"]).code, 2);
}

#[test]
fn a_command_that_cannot_be_undone_stops_a_revert() {
    let host = base();
    host.ok(&["exec", "--", "sh", "-c", "echo m >> ../ran; echo made > etc/made"]);
    host.ok(&["ci"]);
    let head = rev(&host, "HEAD");
    let refused = host.gdo(&["revert", "HEAD", "--offline"]);
    assert!(refused.code == 12 && refused.err.contains("--content-only"), "{}", refused.err);
    assert_eq!(rev(&host, "HEAD"), head);
    host.ok(&["revert", "HEAD", "--offline", "--content-only"]);
    assert_eq!((ran(&host), host.exists("etc/made")), ("m\n".to_owned(), false));
}
