//! A change on trial goes by itself unless somebody confirms it, whatever becomes of the session that began it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::World;
use crate::common::sshd::Key;

/// A host with a base applied, and a change of a file with a handler still to come.
fn host() -> (World, World) {
    let (origin, host) = (World::new(), World::new());
    origin.ok(&["handler", "reload", "--", "sh", "-c", "cat etc/sshd >> ../loaded"]);
    origin.ok(&["attributes", "/etc/sshd", "handler=reload"]);
    origin.write("etc/sshd", "open\n");
    origin.ok(&["snap", "."]);
    origin.ok(&["ci"]);
    send(&origin, &host);
    host.ok(&["up", "--offline", "--to", "o/main"]);
    origin.write("etc/sshd", "closed\n");
    origin.ok(&["snap", "etc"]);
    origin.ok(&["ci"]);
    send(&origin, &host);
    (origin, host)
}

fn send(from: &World, to: &World) {
    to.sh(&format!("git -C .git fetch -q '{}' '+refs/heads/*:refs/remotes/o/*'", from.path(".git").display()));
}

fn loaded(host: &World) -> String {
    std::fs::read_to_string(host.path("../loaded")).unwrap_or_default()
}

/// Waits until something is so.
fn wait(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: it never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_nobody_confirms_goes_by_itself_and_does_not_come_again() {
    let (_origin, host) = host();
    let run = host.gdo(&["up", "--offline", "--to", "o/main", "--try", "1"]);
    assert_eq!(run.code, 12, "{}{}", run.out, run.err);
    assert!(run.err.contains("gdo confirm") && run.err.contains("went back to commit"), "{}", run.err);
    assert_eq!((host.read("etc/sshd"), loaded(&host)), ("open\n".to_owned(), "open\nclosed\nopen\n".to_owned()));
    let status = host.ok(&["status"]);
    assert!(status.contains("held") && status.contains("nothing differs") && !status.contains("trial"), "{status}");
    assert_eq!(host.gdo(&["confirm"]).code, 9);
}

#[test]
fn what_is_confirmed_stays() {
    let (_origin, host) = host();
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| host.gdo(&["up", "--offline", "--to", "o/main", "--try", "60"]));
        wait("the trial", || host.ok(&["status"]).contains("on trial"));
        wait("the change", || host.read("etc/sshd") == "closed\n");
        wait("the wait", || host.gdo(&["confirm"]).code == 0);
        let run = trial.join().unwrap();
        assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    });
    assert_eq!(host.read("etc/sshd"), "closed\n");
    assert!(!host.ok(&["status"]).contains("trial"));
}

#[test]
fn a_session_that_ends_takes_nothing_with_it() {
    let (_origin, host) = host();
    // The session's processes are all killed as soon as the trial waits.
    host.sh(
        "setsid sh -c 'gdo up --offline --to o/main --try 8 > /dev/null 2>&1' & session=$!
         for n in $(seq 200); do grep -q ' tried ' .git/devops/state/log/* .git/devops/state/log 2>/dev/null && break; sleep 0.1; done
         pkill -KILL -s $session; true",
    );
    assert_eq!(host.read("etc/sshd"), "closed\n");
    wait("the way back", || host.read("etc/sshd") == "open\n");
    wait("the end", || host.ok(&["status"]).contains("held"));
}

#[test]
fn a_trial_that_was_cut_off_is_ended_by_the_next_run() {
    let (_origin, host) = host();
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| host.gdo(&["up", "--offline", "--to", "o/main", "--try", "600"]));
        wait("the change", || host.ok(&["log", "--host"]).contains(" tried "));
        let busy = host.gdo(&["up", "--offline", "--to", "o/main"]);
        assert!(busy.code == 7 && busy.err.contains("gdo confirm"), "{} {}", busy.code, busy.err);
        // Whatever waits may be killed.
        host.sh("pkill -KILL -f '[-]-try 600 --detached'");
        assert_ne!(trial.join().unwrap().code, 0);
    });
    assert_eq!(host.read("etc/sshd"), "closed\n");
    let next = host.gdo(&["up", "--offline", "--to", "o/main"]);
    assert!(next.err.contains("was cut off") && next.err.contains("went back"), "{}", next.err);
    assert!(host.ok(&["log", "--host"]).contains(" back "));
}

#[test]
fn what_could_not_be_taken_back_is_not_tried() {
    let (origin, host) = host();
    origin.ok(&["exec", "--", "sh", "-c", "echo x >> ../ran"]);
    origin.ok(&["ci"]);
    send(&origin, &host);
    let refused = host.gdo(&["up", "--offline", "--to", "o/main", "--try", "1"]);
    assert!(refused.code == 65 && refused.err.contains("--content-only"), "{} {}", refused.code, refused.err);
    assert_eq!((host.read("etc/sshd"), std::fs::exists(host.path("../ran")).unwrap()), ("open\n".to_owned(), false));
    let run = host.gdo(&["up", "--offline", "--to", "o/main", "--try", "1", "--content-only"]);
    assert_eq!(run.code, 12, "{}", run.err);
    assert_eq!(host.read("etc/sshd"), "open\n");
}

#[test]
fn a_trial_goes_back_over_what_was_changed_meanwhile_and_keeps_that() {
    let (_origin, host) = host();
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| host.gdo(&["up", "--offline", "--to", "o/main", "--try", "10"]));
        wait("the wait", || host.ok(&["log", "--host"]).contains(" tried "));
        host.write("etc/sshd", "in despair\n");
        assert_eq!(trial.join().unwrap().code, 12);
    });
    assert_eq!(host.read("etc/sshd"), "open\n");
    host.ok(&["fix", "--undo"]);
    assert_eq!(host.read("etc/sshd"), "in despair\n");
}

#[test]
fn a_trial_that_halts_goes_back_as_well() {
    let (origin, host) = host();
    origin.sh("touch ../ok");
    origin.ok(&["exec", "--undo", "true", "--", "test", "-e", "../ok"]);
    origin.ok(&["ci"]);
    send(&origin, &host);
    let run = host.gdo(&["up", "--offline", "--to", "o/main", "--try", "1"]);
    assert_eq!(run.code, 12, "{}", run.err);
    assert!(run.err.contains("command-failed") && run.err.contains("went back"), "{}", run.err);
    assert_eq!(host.read("etc/sshd"), "open\n");
    assert!(host.ok(&["status"]).contains("nothing differs"));
}

/// A host whose sshd runs by a file that the host follows.
struct Guarded {
    origin: World,
    host: World,
    key: Key,
    sshd: Child,
    port: u16,
}

impl Guarded {
    fn new() -> Self {
        let (origin, host, key) = (World::new(), World::new(), Key::new());
        let beside = host.path("..").canonicalize().unwrap();
        let (top, public) = (beside.display(), std::fs::read_to_string(key.path().with_extension("pub")).unwrap());
        std::fs::write(beside.join("authorized_keys"), public).unwrap();
        host.sh("ssh-keygen -q -t ed25519 -N '' -f ../host_key");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {top}/host_key\nAuthorizedKeysFile {top}/authorized_keys\nPidFile {top}/pid\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        );
        origin.ok(&["handler", "reload", "--", "sh", "-c", "test ! -e ../pid || kill -HUP $(cat ../pid)"]);
        origin.ok(&["attributes", "/etc/sshd_config", "handler=reload", "validate=/usr/sbin/sshd -t -f %s"]);
        origin.write("etc/sshd_config", &settings);
        origin.ok(&["snap", "."]);
        let _ = std::fs::create_dir_all("/run/sshd"); // sshd wants it, and root alone can make it
        let config = host.path("etc").join("sshd_config");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(config).stderr(std::fs::File::create(beside.join("sshd.log")).unwrap());
        origin.ok(&["ci"]);
        send(&origin, &host);
        host.ok(&["up", "--offline", "--to", "o/main"]);
        let guarded = Self { origin, host, key, sshd: command.spawn().expect("sshd is needed"), port };
        wait("sshd", || guarded.lets_in());
        guarded
    }

    /// Checks in settings with another line, and brings them to the host.
    fn release(&self, line: &str) {
        let settings = self.origin.read("etc/sshd_config");
        self.origin.write("etc/sshd_config", &format!("{settings}{line}\n"));
        self.origin.ok(&["snap", "etc"]);
        self.origin.ok(&["ci"]);
        send(&self.origin, &self.host);
    }

    fn lets_in(&self) -> bool {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "LogLevel=ERROR", "-i"]).arg(self.key.path()).args(["-p", &self.port.to_string(), "127.0.0.1", "true"]);
        ssh.stdin(Stdio::null()).output().unwrap().status.success()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

#[test]
fn settings_of_sshd_that_keep_everybody_out_go_by_themselves() {
    let guarded = Guarded::new();
    let before = guarded.host.read("etc/sshd_config");
    guarded.release("DenyUsers *");
    std::thread::scope(|scope| {
        // As from cron: without a terminal, in a session of its own.
        let up = "setsid --wait gdo up --offline --to o/main --try 8 < /dev/null > ../said 2>&1 || test $? = 12";
        let trial = scope.spawn(|| guarded.host.sh(up));
        wait("the new settings", || !guarded.lets_in());
        assert_ne!(guarded.host.read("etc/sshd_config"), before);
        wait("the way back", || guarded.lets_in());
        trial.join().unwrap();
    });
    assert_eq!(guarded.host.read("etc/sshd_config"), before);
    let (said, status) = (guarded.host.read("../said"), guarded.host.ok(&["status"]));
    assert!(said.contains("went back to commit") && status.contains("held"), "{said}{status}");
}

#[test]
fn settings_that_sshd_cannot_read_are_never_there() {
    let guarded = Guarded::new();
    let before = guarded.host.read("etc/sshd_config");
    guarded.release("NoSuchSetting yes");
    let up = guarded.host.gdo(&["up", "--offline", "--to", "o/main"]);
    assert!(
        up.code == 12 && up.err.contains("invalid") && up.err.contains("bad configuration option"),
        "{}: {}",
        up.code,
        up.err
    );
    assert_eq!(guarded.host.read("etc/sshd_config"), before);
    assert!(guarded.lets_in());
}
