//! Hosts that answer over a real sshd on the loopback.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::{Run, World};

/// A host that serves its work tree: a sshd with the line that `gdo remote authorize` printed.
pub struct Server {
    /// Its work tree.
    pub world: World,
    sshd: Child,
    port: u16,
}

/// A key that may pull.
pub struct Key(tempfile::TempDir);

impl Key {
    pub fn new() -> Self {
        let key = Self(tempfile::tempdir().unwrap());
        keygen(&key.path());
        key
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("key")
    }
}

fn keygen(path: &Path) {
    let status = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(status.expect("ssh-keygen is needed").success());
}

impl Server {
    /// Starts a sshd for a new work tree with `key` as the only one.
    pub fn new(key: &Key) -> Self {
        let world = World::new();
        std::fs::write(world.path("../authorized_keys"), "").unwrap();
        let server = Self::start(world);
        server.authorize(key);
        server
    }

    /// Lets `key` pull, too.
    pub fn authorize(&self, key: &Key) {
        let line = self.world.ok(&["remote", "authorize", &format!("{}.pub", key.path().display())]);
        let keys = self.world.read("../authorized_keys") + &line;
        std::fs::write(self.world.path("../authorized_keys"), keys).unwrap();
    }

    /// Lets sshd run `script` for each session, in which `gdo serve` is what it ran before.
    pub fn answer_by(&self, script: &str) {
        let line = self.world.read("../authorized_keys");
        let serve = line.split('"').nth(1).unwrap();
        let path = self.world.path("..").canonicalize().unwrap().join("answer");
        std::fs::write(&path, script.replace("gdo serve", serve)).unwrap();
        let answer = line.replace(serve, &format!("sh {}", path.display()));
        std::fs::write(self.world.path("../authorized_keys"), answer).unwrap();
    }

    fn start(world: World) -> Self {
        keygen(&world.path("../host_key"));
        let at = |name: &str| world.path("..").canonicalize().unwrap().join(name).display().to_string();
        // With that level, bash leaves alone the tester's .bashrc, which may take longer than all else.
        let settings = "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv SHLVL=2\n";
        let settings = format!("HostKey {}\nAuthorizedKeysFile {}\n{settings}", at("host_key"), at("authorized_keys"));
        let _ = std::fs::create_dir_all("/run/sshd"); // sshd wants it, and root alone can make it
        // Somebody else may take the port before sshd does.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            std::fs::write(world.path("../sshd_config"), format!("ListenAddress 127.0.0.1:{port}\n{settings}")).unwrap();
            let mut sshd = Command::new("/usr/sbin/sshd");
            sshd.args(["-D", "-e", "-f", &at("sshd_config")]).stderr(std::fs::File::create(world.path("../sshd.log")).unwrap());
            let mut sshd = sshd.spawn().expect("sshd is needed");
            while sshd.try_wait().unwrap().is_none() {
                if world.read("../sshd.log").contains("Server listening") {
                    return Self { world, sshd, port };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("sshd does not start: {}", world.read("../sshd.log"));
    }

    pub fn address(&self) -> String {
        format!("ssh://127.0.0.1:{}", self.port)
    }

    pub fn host_key(&self) -> String {
        self.world.read("../host_key.pub")
    }

    /// Lets `client` know this server.
    pub fn add_to(&self, client: &World, name: &str, key: &Key) {
        let key = key.path().display().to_string();
        client.ok(&["remote", "add", name, &self.address(), "--host-key", &self.host_key(), "-i", &key]);
    }

    /// Returns a port of a host far away: what comes there reaches this server after `time`, and so does nothing before.
    pub fn behind(&self, time: Duration) -> u16 {
        let (listener, port) = (TcpListener::bind("127.0.0.1:0").unwrap(), self.port);
        let outer = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    let far = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                    let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    std::thread::spawn(move || {
                        std::io::copy(&mut near_in, &mut far_out).map(|_| far_out.shutdown(std::net::Shutdown::Write))
                    });
                    let (mut far_in, mut near_out) = (far, near);
                    std::io::copy(&mut far_in, &mut near_out).map(|_| near_out.shutdown(std::net::Shutdown::Write))
                });
            }
        });
        outer
    }

    /// Asks sshd, as the key may, to run something.
    pub fn ask(&self, key: &Key, command: &[&str]) -> Run {
        let output = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=ERROR", "-T", "-i"])
            .arg(key.path())
            .args(["-p", &self.port.to_string(), "127.0.0.1"])
            .args(command)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Run { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

/// Writes a file of bytes that do not compress, the same for the same seed.
pub fn noise(world: &World, name: &str, seed: u64, len: usize) {
    let mut bytes = vec![0; len];
    let mut state = seed;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    std::fs::write(world.path(name), bytes).unwrap();
}
