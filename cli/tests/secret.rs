//! Secrets, with real gpg keys: encrypted in git, in the clear only in the file that they are for.

use crate::common::World;

/// A repository, and beside it that of a host which has a key.
fn worlds() -> (World, World) {
    let (origin, host) = (World::new(), World::new());
    origin.sh("mkdir etc; echo 1 >etc/other; gdo attributes /etc/token secret; gdo attributes / times=no; gdo snapshot -q .");
    let key = host.ok(&["secret", "key"]);
    assert!(key.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----"), "{key}");
    assert_eq!(host.ok(&["secret", "key"]), key, "the key stays");
    assert_eq!(host.mode(".git/devops/state/gnupg") & 0o777, 0o700);
    origin.write("../key", &key);
    origin.sh("printf 'pass word\\n' | gdo secret add etc/token --to ../key; gdo commit -q -m token");
    pull(&origin, &host);
    (origin, host)
}

fn pull(origin: &World, host: &World) {
    let from = origin.path(".git").display().to_string();
    host.sh(&format!(
        "git -C .git fetch -q '{from}' +HEAD:refs/heads/main; rm -f .git/index; gdo check --accept >&2; gdo restore >&2 || true"
    ));
}

#[test]
fn a_secret_is_in_the_clear_on_its_host_alone() {
    let (origin, host) = worlds();
    assert_eq!((host.read("etc/token").as_str(), host.mode("etc/token") & 0o777), ("pass word\n", 0o600));
    assert_eq!(host.sh("gdo status | tail -1 | cut -c1-15"), "nothing differs\n");
    assert_eq!(host.ok(&["secret", "show", "etc/token"]), "pass word\n");
    assert!(host.ok(&["cat", "HEAD:etc/token"]).starts_with("-----BEGIN PGP MESSAGE-----\n"));
    // It is not on the origin, which has no key, and stays stored.
    assert_ne!(origin.gdo(&["restore"]).code, 0);
    assert!(!origin.exists("etc/token"));
    origin.sh("echo 2 >etc/other; gdo snapshot -q");
    assert_eq!(origin.stored(), ["etc/other", "etc/token"]);
    assert_eq!(host.sh("pgrep -f \"gpg-agent.*$PWD\" || echo none"), "none\n");
}

#[test]
fn a_secret_that_was_changed_is_never_stored_in_the_clear() {
    let (_origin, host) = worlds();
    host.sh("echo leaked >etc/token");
    assert!(host.ok(&["status"]).contains("M etc/token"));
    let diff = host.ok(&["diff"]);
    assert!(diff.contains("its content is not shown") && !diff.contains("leaked"), "{diff}");
    for args in [&["snapshot"][..], &["snapshot", "etc/token"], &["add", "etc/token"]] {
        let run = host.gdo(args);
        assert_eq!(run.code, 3, "{}", run.err);
        assert!(run.err.contains("gdo secret add etc/token --to KEYFILE"), "{}", run.err);
    }
    host.sh("gdo attributes '*.key' secret; echo leaked >new.key");
    assert_eq!(host.gdo(&["snapshot", "."]).code, 3);
    host.sh("for o in $(git -C .git cat-file --batch-all-objects --batch-check='%(objectname) %(objecttype)' | grep blob | cut -d' ' -f1); do git -C .git cat-file blob $o; done >../all; ! grep -a leaked ../all");
    host.sh("gdo restore etc/token; test \"$(cat etc/token)\" = 'pass word'");
    // What is stored in the clear is not laid down as if it were a secret.
    host.sh("echo x >plain; gdo snapshot -q plain; gdo attributes plain secret; echo y >plain");
    assert_eq!(host.gdo(&["restore", "plain"]).code, 3);
    assert_eq!(host.read("plain"), "y\n");
}

#[test]
fn what_lay_in_the_place_of_a_new_secret_is_not_kept_in_git() {
    let (origin, host) = (World::new(), World::new());
    origin.sh("mkdir etc; echo 1 >etc/other; gdo snapshot -q .");
    let from = origin.path(".git").display().to_string();
    let pull = || host.sh(&format!("git -C .git fetch -q '{from}' +refs/heads/main:refs/remotes/o/main"));
    let key = host.ok(&["secret", "key"]);
    origin.write("../key", &key);
    pull();
    host.ok(&["adopt", "o/main", "--begin"]);
    host.ok(&["converge", "--offline", "--to", "o/main"]);
    // It was managed by hand until the type makes it a secret.
    host.write("etc/token", "PLAINTEXTPW\n");
    origin.sh(
        "gdo attributes /etc/token secret; printf 'pass word\\n' | gdo secret add etc/token --to ../key; gdo commit -q -m token",
    );
    pull();
    host.gdo(&["converge", "--offline", "--to", "o/main"]);
    host.sh("for o in $(git -C .git cat-file --batch-all-objects --batch-check='%(objectname) %(objecttype)' | grep blob | cut -d' ' -f1); do git -C .git cat-file blob $o; done >../all; ! grep -a PLAINTEXTPW ../all");
}
