//! The hosts of one run: connected at once, asked as long as they do what they should, and no more after that.

use std::path::Path;

use super::fetch::{Link, Served};
use super::ssh::{Connection, Remote};
use crate::error::{Error, Result};

/// Connections to several hosts. They end when dropped.
pub struct Hosts {
    hosts: Vec<Host>,
}

struct Host {
    connection: Connection,
    /// Whether it failed, and is asked no more in this run.
    is_out: bool,
}

impl Hosts {
    /// Connects to all of `remotes` at the same time; see [`Connection::open`]. Returns also who could not be reached, and why.
    pub fn connect(remotes: &[Remote], known_hosts: &Path, scratch: &Path) -> (Self, Vec<Error>) {
        // That a directory of a dead run cannot be removed is no reason not to connect.
        let _ = Connection::clear(scratch);
        let connected: Vec<Result<Connection>> = std::thread::scope(|scope| {
            let connect = |remote| scope.spawn(move || Connection::open(remote, known_hosts, scratch));
            let threads: Vec<_> = remotes.iter().map(connect).collect();
            threads.into_iter().map(|thread| thread.join().expect("BUG: a thread that connects panicked")).collect()
        });
        let (mut hosts, mut errors) = (Vec::new(), Vec::new());
        for connected in connected {
            match connected {
                Ok(connection) => hosts.push(Host { connection, is_out: false }),
                Err(error) => errors.push(error),
            }
        }
        (Self { hosts }, errors)
    }

    /// Returns the connections, in the order of the remotes.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.hosts.iter().map(|host| &host.connection)
    }

    /// Returns a line to each host that did not fail yet, and what became of those to which there can be none.
    pub fn links(&mut self) -> (Vec<Link>, Vec<Served>) {
        let (mut links, mut failed) = (Vec::new(), Vec::new());
        for host in self.hosts.iter_mut().filter(|host| !host.is_out) {
            match host.connection.revive().and_then(|()| host.connection.chunks()) {
                Ok(link) => links.push(link),
                Err(error) => {
                    host.is_out = true;
                    let name = host.connection.remote().name.clone();
                    failed.push(Served { name, n_chunks: 0, n_bytes: 0, failure: Some(error) });
                }
            }
        }
        (links, failed)
    }

    /// Asks the host called `name` for nothing more: one that lied, stalled or broke off is no better the next time.
    pub fn give_up(&mut self, name: &str) {
        self.hosts.iter_mut().filter(|host| host.connection.remote().name == name).for_each(|host| host.is_out = true);
    }
}
