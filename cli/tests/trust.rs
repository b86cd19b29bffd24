//! Releases and trust, with real gpg keys and a real sshd.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::sshd::{Key, Server};
use crate::common::{Run, World};

/// A person's gpg: a home with a path short enough for the agent's socket.
struct Gpg(tempfile::TempDir);

impl Gpg {
    fn new() -> Self {
        let gpg = Self(tempfile::Builder::new().prefix("g").rand_bytes(4).tempdir_in("/tmp").unwrap());
        std::fs::set_permissions(gpg.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        gpg
    }

    fn run(&self, args: &[&str], input: &str) -> Vec<u8> {
        use std::io::Write;
        let mut gpg = Command::new("gpg");
        gpg.args(["--homedir", self.home(), "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]).args(args);
        gpg.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = gpg.spawn().expect("gpg is needed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        output.stdout
    }

    fn home(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// Makes a key; its public half is in the file that is returned.
    fn key(&self, name: &str) -> PathBuf {
        self.run(&["--quick-gen-key", &format!("{name} <{name}@example.org>"), "ed25519", "sign", "0"], "");
        self.export(name)
    }

    fn export(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(format!("{name}.asc"));
        std::fs::write(&path, self.run(&["--armor", "--export", &format!("{name}@example.org")], "")).unwrap();
        path
    }

    fn fingerprint(&self, name: &str) -> String {
        let listed = String::from_utf8(self.run(&["--with-colons", "--list-keys", &format!("{name}@example.org")], "")).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").args(["--homedir", self.home(), "--kill", "all"]).status();
    }
}

/// Runs the program as a person with this gpg does, at this time.
fn as_person(world: &World, gpg: &Gpg, args: &[&str]) -> Run {
    world.gdo_with(args, &[("GNUPGHOME", gpg.home())])
}

fn ok(world: &World, gpg: &Gpg, args: &[&str]) -> String {
    let run = as_person(world, gpg, args);
    assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
    run.out
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything of a host that says what it trusts and accepted, and its tags.
fn state(world: &World) -> String {
    world.sh("cd .git; cat devops/state/trust/* devops/trust/*; git for-each-ref refs/tags refs/devops/trust")
}

/// An origin with a commit on 'main' that serves, a host that fetches from it and trusts 'ann', and the people's keys.
struct Fleet {
    gpg: Gpg,
    origin: Server,
    host: World,
    key: Key,
}

impl Fleet {
    fn new() -> Self {
        let (gpg, key) = (Gpg::new(), Key::new());
        let ann = gpg.key("ann");
        let fleet = Self { origin: Server::new(&key), host: World::new(), gpg, key };
        fleet.commit("one");
        fleet.join(&fleet.host, &ann);
        fleet
    }

    fn join(&self, host: &World, ann: &Path) {
        self.origin.add_to(host, "origin", &self.key);
        host.ok(&["trust", "init", text(ann)]);
    }

    fn commit(&self, content: &str) {
        self.origin.world.write("file", content);
        self.origin.world.snapshot();
    }

    fn release(&self, more: &[&str]) -> String {
        ok(&self.origin.world, &self.gpg, &[&["release", "--key", "ann@example.org"], more].concat())
    }

    fn fetch(&self) -> Run {
        self.host.gdo(&["fetch"])
    }

    /// Fetches, and expects that nothing moves and that it is refused for `id`.
    fn refused(&self, id: &str) {
        let before = state(&self.host);
        let run = self.fetch();
        assert_eq!(run.code, 65, "{id}: {}{}", run.out, run.err);
        assert!(run.err.contains(&format!("refused: {id}: ")), "{id}: {}", run.err);
        assert_eq!(state(&self.host), before, "{id}");
    }

    /// Puts a tag object made of `text` at `name` on the origin, with a signature of `signer` by gpg with `options`.
    fn forge(&self, name: &str, text: &str, signer: &str, options: &[&str]) {
        let signer = format!("{signer}@example.org");
        let args = [&["--armor", "--detach-sign", "--local-user", &signer][..], options].concat();
        let signature = String::from_utf8(self.gpg.run(&args, text)).unwrap();
        self.put(name, &format!("{text}{signature}"));
    }

    fn put(&self, name: &str, object: &str) {
        self.origin.world.write("../object", object);
        let script =
            "git --git-dir .git update-ref NAME $(git --git-dir .git hash-object -t tag -w --literally --stdin <../object)";
        self.origin.world.sh(&script.replace("NAME", &format!("refs/tags/{name}")));
    }

    fn remove(&self, name: &str) {
        self.origin.world.sh(&format!("git --git-dir .git update-ref -d refs/tags/{name}"));
    }

    /// Returns the signed text of a release on the origin.
    fn signed_text(&self, name: &str) -> String {
        let object = self.origin.world.sh(&format!("git --git-dir .git cat-file tag {name}"));
        object.split("-----BEGIN").next().unwrap().to_owned()
    }
}

#[test]
fn a_host_goes_by_what_its_key_signed_and_by_nothing_else() {
    let fleet = Fleet::new();
    let (origin, host) = (&fleet.origin.world, &fleet.host);
    // Commits alone move nothing.
    assert_eq!(fleet.fetch().code, 0);
    assert_eq!(host.gdo(&["verify"]).code, 9);
    assert!(fleet.release(&["-n"]).contains("would make release/main/1"));
    assert_eq!(origin.sh("git --git-dir .git tag"), "");
    fleet.release(&[]);
    fleet.commit("two");
    fleet.release(&[]);
    let run = fleet.fetch();
    assert_eq!((run.code, run.out.contains("release/main/2 is accepted")), (0, true), "{}{}", run.out, run.err);
    let head = origin.sh("git --git-dir .git rev-parse HEAD");
    assert!(host.ok(&["verify"]).contains(&format!(
        "release/main/2: accepted, signed by {}, commit {}",
        fleet.gpg.fingerprint("ann"),
        head.trim()
    )));
    assert!(host.ok(&["verify", "release/main/1"]).starts_with("release/main/1: superseded"));
    assert!(host.ok(&["verify", "origin/main"]).starts_with("release/main/2: accepted"));
    assert!(host.ok(&["release", "--list"]).ends_with("\taccepted\n"));
    assert!(host.ok(&["trust"]).contains("accepted: main, epoch 1, number 2"));
    assert_eq!(fleet.fetch().out, "", "nothing is new");
    // Stock git verifies the same object.
    let home = fleet.gpg.home();
    origin.sh(&format!("GNUPGHOME={home} git --git-dir .git verify-tag release/main/2; git --git-dir .git fsck --strict"));
    host.sh("git --git-dir .git fsck --strict; gdo check");
    // Once more over what is here, floor and all.
    host.sh("grep -c . .git/devops/state/trust/floor.0 >/dev/null; cmp .git/devops/state/trust/floor.0 .git/devops/state/trust/floor.1");
}

#[test]
fn status_tells_how_what_is_applied_stands_to_what_is_released() {
    let fleet = Fleet::new();
    let (origin, host) = (&fleet.origin.world, &fleet.host);
    ok(origin, &fleet.gpg, &["trust", "init", text(&fleet.gpg.export("ann"))]);
    let change = |content: &str| {
        origin.write("file", content);
        origin.ok(&["snap"]);
        origin.ok(&["ci"]);
    };
    let told = |world: &World, code: i32, what: &str| {
        let run = world.gdo(&["status", "--exit-code"]);
        assert!(run.code == code && run.out.contains(what), "{what}: {}{}", run.code, run.out);
    };
    change("one more");
    fleet.release(&[]);
    host.ok(&["up"]);
    told(host, 0, "release 1 accepted and applied;");
    change("two");
    told(origin, 0, "release 1 accepted and applied, and more than that;");
    fleet.release(&[]);
    assert_eq!(fleet.fetch().code, 0);
    told(host, 1, "release 2 accepted, not applied yet;");
    host.ok(&["up"]);
    told(host, 0, "release 2 accepted and applied;");
    host.ok(&["rollback"]);
    told(host, 1, "release 2 accepted, not applied yet;");
}

#[test]
fn what_does_not_verify_is_refused_by_name_and_nothing_moves() {
    let fleet = Fleet::new();
    for signer in ["eve", "bob"] {
        fleet.gpg.key(signer);
    }
    fleet.release(&[]);
    fleet.commit("two");
    fleet.release(&[]);
    assert_eq!(fleet.fetch().code, 0);
    fleet.commit("three");
    fleet.release(&[]);
    let good = fleet.signed_text("release/main/3");
    let commit = |text: &str| text.lines().find_map(|line| line.strip_prefix("commit ")).unwrap().to_owned();
    let prev = good.lines().find_map(|line| line.strip_prefix("prev ")).unwrap().to_owned();
    let first = fleet.origin.world.sh("git --git-dir .git rev-parse release/main/1").trim().to_owned();
    let whole = fleet.origin.world.sh("git --git-dir .git cat-file tag release/main/3");
    let armored = whole.strip_prefix(&good).unwrap().to_owned();
    fleet.remove("release/main/3");
    let old = good.lines().find_map(|line| line.strip_prefix("issued ")).unwrap().to_owned();
    let at = |text: &str, issued: u64, expires: u64| {
        let lines = text.lines().map(|line| match line.split(' ').next() {
            Some("issued") => format!("issued {issued}"),
            Some("expires") => format!("expires {expires}"),
            Some("tagger") => line.replace(&old, &issued.to_string()),
            _ => line.to_owned(),
        });
        lines.map(|line| line + "\n").collect::<String>()
    };
    let now: u64 = old.parse().unwrap();
    let numbered =
        |seq: u64| good.replace("release/main/3", &format!("release/main/{seq}")).replace("seq 3", &format!("seq {seq}"));
    let none: &[&str] = &[];
    type Case<'a> = (&'a str, &'a str, String, &'a str, &'a [&'a str]);
    let signed: Vec<Case> = vec![
        ("signature", "release/main/3", good.clone(), "eve", none),
        ("signature", "release/main/3", good.clone(), "ann", &["--digest-algo", "SHA1"]),
        ("signature", "release/main/3", good.clone(), "ann", &["--textmode"]),
        ("signature", "release/main/3", format!("{good}more\n"), "ann", none),
        ("signature", "release/main/3", good.replace("tagger ", "tagger \u{1b}"), "ann", none),
        ("wrong-branch", "release/db/3", good.clone(), "ann", none),
        ("wrong-branch", "release/main/4", good.clone(), "ann", none),
        ("wrong-branch", "release/main/3", good.replace("type main", "type db"), "ann", none),
        ("release", "release/main/3", good.replace("epoch 1", "epoch 01"), "ann", none),
        ("stale-head", "release/main/3", at(&good, now - 9000, now - 5000), "ann", none),
        ("future", "release/main/3", at(&good, now + 200_000, now + 300_000), "ann", none),
        ("gap", "release/main/5", numbered(5), "ann", none),
        ("fork", "release/main/3", good.replace(&prev, &commit(&good)), "ann", none),
        ("gap", "release/main/3", good.replace(&prev, &first), "ann", none),
        ("seq-limit", "release/main/18446744073709551615", numbered(u64::MAX), "ann", none),
        ("epoch", "release/main/2.3", good.replace("main/3", "main/2.3").replace("epoch 1", "epoch 2"), "ann", none),
        ("manifest", "release/main/3", good.replace("manifest ", "manifest 0"), "ann", none),
        ("min-version", "release/main/3", good.replace("min-version 0.1.0", "min-version 99.0.0"), "ann", none),
    ];
    for (id, name, text, signer, options) in signed {
        // A manifest keeps its length.
        let text = match id {
            "manifest" => good
                .lines()
                .map(|line| match line.strip_prefix("manifest ") {
                    Some(hash) => format!("manifest {}\n", hash.chars().rev().collect::<String>()),
                    None => format!("{line}\n"),
                })
                .collect(),
            _ => text,
        };
        fleet.forge(name, &text, signer, options);
        match id {
            "min-version" => {
                let run = fleet.fetch();
                assert_eq!((run.code, run.err.contains("min-version: ")), (65, true), "{}", run.err);
            }
            _ => fleet.refused(id),
        }
        fleet.remove(name);
    }
    // Without a signature, with several, with something around it.
    let objects = [
        good.clone(),
        format!("{whole}{armored}"),
        format!("{whole}{armored}{armored}"),
        format!("{good}{}", armored.repeat(40)),
        format!("{whole}more\n"),
        format!("{good}x{armored}"),
        good.clone() + &armored.replace("\n\n", "\nComment: x\n\n"),
        whole.replace("type main", "type  main"),
    ];
    for object in &objects[..7] {
        fleet.put("release/main/3", object);
        fleet.refused("signature");
    }
    fleet.put("release/main/3", &objects[7]);
    fleet.refused("release");
    // A commit under the name of a release, and another object under the name of one that is here.
    fleet.origin.world.sh("git --git-dir .git update-ref refs/tags/release/main/3 HEAD");
    fleet.refused("release");
    fleet.remove("release/main/3");
    fleet.forge("release/main/2", &numbered(2).replace(&prev, &first), "ann", none);
    fleet.refused("fork");
    fleet.origin.world.sh(&format!("git --git-dir .git update-ref refs/tags/release/main/2 {prev}"));
    // And the honest one still comes through.
    fleet.put("release/main/3", &whole);
    let run = fleet.fetch();
    assert_eq!((run.code, run.out.contains("release/main/3 is accepted")), (0, true), "{}{}", run.out, run.err);
}

#[test]
fn neither_an_older_release_nor_a_rewritten_history_comes_through() {
    let fleet = Fleet::new();
    let (origin, host) = (&fleet.origin.world, &fleet.host);
    fleet.release(&[]);
    fleet.commit("two");
    fleet.release(&[]);
    // The host sees the second one alone at first.
    origin.sh("git --git-dir .git update-ref refs/keep/1 refs/tags/release/main/1");
    fleet.remove("release/main/1");
    assert!(fleet.fetch().out.contains("release/main/2 is accepted"));
    origin.sh("git --git-dir .git update-ref refs/tags/release/main/1 refs/keep/1");
    origin.sh("git --git-dir .git update-ref refs/keep/2 refs/tags/release/main/2");
    // In the history of what is accepted, it is known: it comes along, and moves nothing.
    fleet.remove("release/main/2");
    assert_eq!(fleet.fetch().code, 0);
    assert!(host.ok(&["verify"]).starts_with("release/main/2: accepted"));
    // Another history of the branch under the next number.
    origin.sh("git --git-dir .git update-ref refs/tags/release/main/2 refs/keep/2; git --git-dir .git update-ref refs/keep/main refs/heads/main
        git --git-dir .git update-ref refs/heads/main $(git --git-dir .git commit-tree -m other HEAD^{tree}); gdo check --accept");
    let run = as_person(origin, &fleet.gpg, &["release", "--key", "ann@example.org"]);
    assert_eq!((run.code, run.err.contains("refused: fork: ")), (65, true), "{}", run.err);
    let text = fleet.signed_text("release/main/2");
    let (old, new) =
        (origin.sh("git --git-dir .git rev-parse refs/keep/main"), origin.sh("git --git-dir .git rev-parse refs/heads/main"));
    let prev = origin.sh("git --git-dir .git rev-parse release/main/2");
    let text: String = text.replace(old.trim(), new.trim()).replace("release/main/2", "release/main/3").replace("seq 2", "seq 3");
    let text: String =
        text.lines().map(|line| if line.starts_with("prev ") { format!("prev {prev}") } else { format!("{line}\n") }).collect();
    fleet.forge("release/main/3", &text, "ann", &[]);
    fleet.refused("fork");
}

#[test]
fn keys_change_hands_by_documents_that_enough_of_them_sign() {
    let fleet = Fleet::new();
    let (origin, host, gpg) = (&fleet.origin.world, &fleet.host, &fleet.gpg);
    let (bob, cid) = (gpg.key("bob"), gpg.key("cid"));
    let [ann_name, bob_name] = ["ann", "bob"].map(|name| gpg.fingerprint(name));
    origin.ok(&["trust", "init", text(&gpg.0.path().join("ann.asc"))]);
    fleet.release(&[]);
    assert_eq!(fleet.fetch().code, 0);
    // Two of three sign from now on, and bob makes the releases.
    let next = gpg.0.path().join("next.root");
    let next = text(&next);
    origin.ok(&[
        "trust",
        "next",
        "-o",
        next,
        "--threshold",
        "2",
        "--add-root",
        text(&bob),
        "--add-root",
        text(&cid),
        "--add-key",
        text(&bob),
        "--remove-key",
        &ann_name,
    ]);
    let install = |id: Option<&str>| {
        let run = origin.gdo(&["trust", "install", next]);
        match id {
            Some(id) => assert!(run.code == 65 && run.err.contains(&format!("refused: {id}: ")), "{}{}", run.code, run.err),
            None => assert_eq!(run.code, 0, "{}", run.err),
        }
    };
    install(Some("threshold"));
    ok(origin, gpg, &["trust", "sign", next, "--key", "bob@example.org"]);
    install(Some("threshold"));
    // On another machine there is neither repository nor gdo's state; gpg alone could do it, too.
    let text_only = std::fs::read_to_string(next).unwrap();
    let text_only = text_only.split("-----BEGIN").next().unwrap();
    let by_ann = gpg.run(&["--armor", "--detach-sign", "--local-user", "ann@example.org"], text_only);
    std::fs::write(next, [std::fs::read(next).unwrap(), by_ann].concat()).unwrap();
    install(None);
    fleet.commit("two");
    let run = as_person(origin, gpg, &["release", "--key", "ann@example.org"]);
    assert_eq!((run.code, run.err.contains("hosts would refuse")), (65, true), "{}", run.err);
    ok(origin, gpg, &["release", "--key", "bob@example.org"]);
    let run = fleet.fetch();
    assert_eq!((run.code, run.out.contains("release/main/2 is accepted")), (0, true), "{}{}", run.out, run.err);
    assert!(host.ok(&["trust"]).starts_with("root document 2, until "));
    // Bob's key is lost, after it signed the highest number there is: revoked, and the numbers begin anew.
    let prev = origin.sh("git --git-dir .git rev-parse release/main/2");
    origin.ok(&["trust", "next", "-o", next, "--revoke", &bob_name, "--add-key", text(&cid), "--raise-epoch", "*"]);
    ok(origin, gpg, &["trust", "sign", next, "--key", "ann@example.org"]);
    ok(origin, gpg, &["trust", "sign", next, "--key", "cid@example.org"]);
    install(None);
    install(None);
    let stolen = fleet.signed_text("release/main/2").replace("main/2", "main/3").replace("seq 2", "seq 3");
    let stolen: String =
        stolen.lines().map(|line| if line.starts_with("prev ") { format!("prev {prev}") } else { format!("{line}\n") }).collect();
    fleet.forge("release/main/3", &stolen, "bob", &[]);
    // Of an epoch that is over nothing is taken, and nothing is said: honest ones would be named for ever.
    assert_eq!((fleet.fetch().code, host.sh("git --git-dir .git tag -l release/main/3").as_str()), (0, ""));
    assert!(host.ok(&["trust"]).contains("epoch 1, number 2"));
    assert!(host.ok(&["trust"]).starts_with("root document 3, until "), "the new document came in all the same");
    fleet.remove("release/main/3");
    ok(origin, gpg, &["release", "--key", "cid@example.org"]);
    let run = fleet.fetch();
    assert_eq!((run.code, run.out.contains("release/main/2.1 is accepted")), (0, true), "{}{}", run.out, run.err);
    // A host that was away for all of it goes from document to document.
    let late = World::new();
    fleet.join(&late, &gpg.export("ann"));
    let run = late.gdo(&["fetch"]);
    assert_eq!((run.code, run.out.contains("release/main/2.1 is accepted")), (0, true), "{}{}", run.out, run.err);
    assert!(late.ok(&["trust"]).starts_with("root document 3, until "));
}

#[test]
fn keys_that_expired_or_were_revoked_by_their_owner_do_not_count() {
    let fleet = Fleet::new();
    let gpg = &fleet.gpg;
    gpg.run(&["--faked-system-time", "20200101T000000", "--quick-gen-key", "old <old@example.org>", "ed25519", "sign", "1d"], "");
    let revoked = gpg.key("gone");
    let host = World::new();
    fleet.origin.add_to(&host, "origin", &fleet.key);
    let old = gpg.export("old");
    // The host learns the key with its revocation; a revocation that comes later comes with a root document.
    let name = gpg.fingerprint("gone");
    let fleet_text = {
        fleet.release(&[]);
        let text = fleet.signed_text("release/main/1");
        fleet.remove("release/main/1");
        text
    };
    fleet.forge("release/main/1", &fleet_text, "gone", &[]);
    let certificate = std::fs::read_to_string(format!("{}/openpgp-revocs.d/{name}.rev", gpg.home())).unwrap();
    gpg.run(&["--import"], &certificate.replace(":-----BEGIN", "-----BEGIN"));
    let revoked_too = gpg.export("gone");
    assert_ne!(std::fs::read(&revoked_too).unwrap().len(), 0);
    host.ok(&["trust", "init", text(&old), text(&revoked_too)]);
    drop(revoked);
    let refused = |word: &str| {
        let run = host.gdo(&["fetch"]);
        assert_eq!((run.code, run.err.contains("refused: signature: ") && run.err.contains(word)), (65, true), "{}", run.err);
        assert_eq!(host.gdo(&["verify"]).code, 9);
    };
    refused("revoked");
    fleet.remove("release/main/1");
    fleet.forge("release/main/1", &fleet_text, "old", &["--faked-system-time", "20200101T000100"]);
    refused("expired");
}

#[test]
fn no_clock_revives_an_expired_release_and_the_host_goes_on_as_it_is() {
    let fleet = Fleet::new();
    let host = &fleet.host;
    fleet.release(&["--expires", "1"]);
    assert_eq!(fleet.fetch().code, 0);
    fleet.commit("two");
    fleet.release(&["--expires", "1"]);
    let before = state(host);
    for time in ["4294967296", "2000000000"] {
        let run = host.gdo_with(&["fetch"], &[("GIT_DEVOPS_TIME", time)]);
        assert_eq!((run.code, run.err.contains("refused: stale-head: ")), (65, true), "{}", run.err);
        assert_eq!(state(host), before);
        let run = host.gdo_with(&["verify"], &[("GIT_DEVOPS_TIME", time)]);
        assert_eq!((run.code, run.err.contains("refused: stale-head: ")), (65, true), "{}", run.err);
    }
    // The wrong clock left no trace; one of 1970 is taken for the moment of what was accepted.
    let run = host.gdo_with(&["fetch"], &[("GIT_DEVOPS_TIME", "1")]);
    assert_eq!((run.code, run.out.contains("release/main/2 is accepted")), (0, true), "{}{}", run.out, run.err);
}

#[test]
fn the_floor_survives_one_slot_and_is_never_silently_zero() {
    let fleet = Fleet::new();
    let host = &fleet.host;
    fleet.release(&[]);
    assert_eq!(fleet.fetch().code, 0);
    host.sh("cd .git/devops/state/trust; sed -i 's/ 1 1 / 1 0 /' floor.0");
    let run = host.gdo(&["trust"]);
    assert!(run.code == 0 && run.err.contains("floor.0") && run.out.contains("number 1"), "{}{}", run.out, run.err);
    assert_eq!(fleet.fetch().code, 0);
    host.ok(&["trust", "repair"]);
    assert_eq!(host.gdo(&["trust"]).err, "");
    for damage in ["sed -i 's/ 1 1 / 1 0 /' floor.?", "rm floor.?", ": >floor.0; rm floor.1", "truncate -s -1 floor.?"] {
        host.sh(&format!("cd .git/devops/state/trust; {damage}"));
        for args in [&["fetch"][..], &["verify"], &["trust"], &["release", "--list"]] {
            let run = host.gdo(args);
            assert!(
                run.code == 8 && run.err.contains("floor: ") && run.err.contains("gdo trust repair"),
                "{damage}: {args:?}: {} {}",
                run.code,
                run.err
            );
        }
        assert!(host.ok(&["trust", "repair"]).contains("release/main/1 is accepted"), "{damage}");
        assert!(host.ok(&["verify"]).starts_with("release/main/1: accepted"), "{damage}");
    }
    // A root document that is not the one that was accepted.
    host.sh("cd .git/devops/trust; cp 1.root ../../../1.root; printf x >>1.root");
    assert!(matches!(host.gdo(&["fetch"]).code, 8 | 65));
    host.sh("cd .git/devops/trust; rm 1.root");
    assert_ne!(fleet.fetch().code, 0);
    host.sh("cp 1.root .git/devops/trust/");
    assert_eq!(fleet.fetch().code, 0);
}

#[test]
fn a_system_trusts_from_its_first_moment() {
    let gpg = Gpg::new();
    let ann = gpg.key("ann");
    let world = World::new();
    world.sh("mkdir ../root");
    let root = world.path("../root").canonicalize().unwrap();
    let root = root.to_str().unwrap();
    world.ok(&["init", "--system", "--root", root, "--type", "web", "--trust", text(&ann)]);
    assert!(world.ok(&["trust", "--root", root]).contains(&gpg.fingerprint("ann")));
    assert!(
        world.path("../root/etc/git-devops/trust/1.root").exists()
            && world.path("../root/var/lib/git-devops/trust/floor.0").exists()
    );
    // It is this host's own, and comes to no other with what is stored.
    world.sh("mkdir -p ../root/etc; echo web > ../root/etc/hostname; gdo --root ../root snapshot -q .");
    let stored = world.sh("gdo --root ../root git ls-tree -r --name-only HEAD");
    assert!(stored.contains("etc/hostname") && !stored.contains("git-devops/trust"), "{stored}");
    // Once more is safe; other keys are another matter.
    world.ok(&["init", "--system", "--root", root, "--type", "web", "--trust", text(&ann)]);
    let eve = gpg.key("eve");
    assert_eq!(world.gdo(&["trust", "--root", root, "init", text(&eve)]).code, 65);
    // A secret key is not taken, nor is anything made of it.
    let secret = gpg.0.path().join("secret");
    std::fs::write(&secret, gpg.run(&["--armor", "--export-secret-keys", "ann@example.org"], "")).unwrap();
    world.sh("mkdir ../other");
    let run = world.gdo(&["init", "../other", "--trust", text(&secret)]);
    assert_eq!((run.code, world.path("../other/.git").exists()), (2, false), "{}", run.err);
}

#[test]
fn a_convergence_of_a_host_that_is_held_waits_for_a_newer_release() {
    let fleet = Fleet::new();
    let host = &fleet.host;
    fleet.release(&[]);
    assert_eq!(fleet.fetch().code, 0);
    host.ok(&["converge"]);
    host.ok(&["hold"]);
    host.write("file", "by hand");
    for args in [&["converge"][..], &["converge", "--offline"], &["converge", "-n"]] {
        let held = host.gdo(args);
        let is_held = held.out.contains("held: nothing is applied");
        assert_eq!((held.code, is_held), (0, true), "{args:?}: {}{}", held.out, held.err);
        assert_eq!(host.read("file"), "by hand");
    }
    assert!(host.ok(&["--json", "converge"]).contains(r#""held":"1/1""#));
    fleet.commit("two");
    fleet.release(&[]);
    host.ok(&["converge"]);
    assert_eq!(host.read("file"), "two");
    host.write("file", "by hand");
    host.ok(&["converge"]);
    assert_eq!(host.read("file"), "two", "the hold is lifted");
}
