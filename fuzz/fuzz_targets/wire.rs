//! What another host says, as a server and as a client hear it.
#![no_main]

use std::time::Duration;

use git_devops::id::ChunkId;
use git_devops::remote::client::Client;
use git_devops::remote::serve::Session;
use git_devops::remote::wire::{FromClient, FromServer, Want};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((kind, body)) = data.split_first() {
        if let Ok(frame) = FromClient::decode(*kind, body) {
            assert_eq!(frame.encode()[4..], *data);
        }
        if let Ok(frame) = FromServer::decode(*kind, body) {
            assert_eq!(frame.encode()[4..], *data);
        }
    }
    // In two parts, the second after a while.
    let (first, second) = data.split_at(data.len() / 2);
    let mut session = Session::new(Duration::ZERO);
    for (at, part) in [first, second].into_iter().enumerate() {
        if session.receive(part, Duration::from_secs(at as u64)).is_err() {
            break;
        }
        while let Ok(Some(_)) = session.next_step() {}
    }
    let mut client = Client::default();
    let _ = client.ask(Want::Get, vec![ChunkId::of(b"a"), ChunkId::of(b"b")]);
    let _ = client.ask(Want::Have, vec![ChunkId::of(b"c"); 9]);
    client.receive(data);
    while let Ok(Some(_)) = client.next_event() {}
});
