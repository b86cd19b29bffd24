//! Where another host is: `ssh://[user@]host[:port]`, or `[user@]host`.
//!
//! Both parts end up as arguments of ssh. What could be read as an option, a command or a setting is refused here, before anything is started.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Reason, Result};

/// A host that is reached by ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// Longest name of a host, as in DNS.
const MAX_HOST: usize = 253;
/// Longest name of a user, as in Linux.
const MAX_USER: usize = 32;

impl Address {
    /// Returns what ssh is to be called with, before the command.
    pub fn ssh_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        if let Some(user) = &self.user {
            args.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            args.extend(["-p".to_owned(), port.to_string()]);
        }
        args.extend(["--".to_owned(), self.host.clone()]);
        args
    }

    /// Returns the address as git is to be called with; the path stands for the one repository that is served.
    pub fn git_url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let user = self.user.as_ref().map_or(String::new(), |user| format!("{user}@"));
        let port = self.port.map_or(String::new(), |port| format!(":{port}"));
        format!("ssh://{user}{host}{port}/")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.git_url().trim_end_matches('/'))
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            let shown: String = text.chars().take(300).collect();
            let message = format!("'{}' is no host; write 'ssh://[user@]host[:port]' or '[user@]host'", shown.escape_debug());
            Error::refused(Reason::HostSyntax, message)
        };
        let (rest, is_url) = match text.strip_prefix("ssh://") {
            Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), true),
            None => (text, false),
        };
        let (user, rest) = match rest.split_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) if is_v6(host) => (host, None),
            Some((host, port)) if is_v6(host) => (host, Some(port.strip_prefix(':').ok_or_else(refused)?)),
            Some(_) => return Err(refused()),
            None => match rest.split_once(':') {
                Some((host, port)) if is_url => (host, Some(port)),
                Some(_) => return Err(refused()),
                None => (rest, None),
            },
        };
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port > 0).ok_or_else(refused)?)
            }
            Some(_) => return Err(refused()),
        };
        let is_user = |user: &str| is_name(user, MAX_USER, b"-_.");
        if !(is_name(host, MAX_HOST, b"-_.") || is_v6(host)) || !user.is_none_or(is_user) {
            return Err(refused());
        }
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

/// Letters, digits and `others`, the first no punctuation.
fn is_name(text: &str, longest: usize, others: &[u8]) -> bool {
    text.len() <= longest
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

fn is_v6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_people_write_lead_to_one_call_of_ssh() {
        let cases: [(&str, &[&str], &str); 6] = [
            ("web1", &["--", "web1"], "ssh://web1/"),
            ("ann@web1.example.org", &["-l", "ann", "--", "web1.example.org"], "ssh://ann@web1.example.org/"),
            ("ssh://web1:2222", &["-p", "2222", "--", "web1"], "ssh://web1:2222/"),
            ("ssh://_gdo@10.0.0.1:22/", &["-l", "_gdo", "-p", "22", "--", "10.0.0.1"], "ssh://_gdo@10.0.0.1:22/"),
            ("ssh://[fe80::1]:7", &["-p", "7", "--", "fe80::1"], "ssh://[fe80::1]:7/"),
            ("[::1]", &["--", "::1"], "ssh://[::1]/"),
        ];
        for (text, args, url) in cases {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.ssh_args(), address.git_url()), (args.iter().map(ToString::to_string).collect(), url.to_owned()));
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_ssh_or_git_would_read_as_something_else_is_refused() {
        let hostile = [
            "-oProxyCommand=x",
            "ssh://-oProxyCommand=x/",
            "ssh://-oProxyCommand=x",
            "ext::sh -c x",
            "fd::3",
            "file:///",
            "file:///etc",
            "--upload-pack=x",
            "a;b@h",
            "a b@h",
            "-l@h",
            "@h",
            "a@",
            "a@b@c",
            "h\nProxyCommand x",
            "h ProxyCommand",
            "[::1%$(x)]",
            "[::1",
            "[host]",
            "::1",
            "",
            "ssh://",
            "ssh://h/path",
            "ssh://h:",
            "ssh://h:0",
            "ssh://h:65536",
            "ssh://h:+22",
            "h:22",
            "host:path",
            "h$(x)",
            "h`x`",
            "h%h",
            "h\\x",
            "h/x",
            ".h",
            "hÿ",
            "http://h",
            "SSH://h",
        ];
        let long = "h".repeat(300);
        for text in hostile.into_iter().chain([&long[..], &format!("{long}@h")]) {
            assert_eq!(text.parse::<Address>().unwrap_err().reason(), Some(Reason::HostSyntax), "{text:?}");
        }
    }
}
