//! As much of OpenPGP as is needed to hand gpgv exactly what was meant: armor, packets, fingerprints. No cryptography.

use std::fmt;
use std::str::FromStr;

use sha1dc::Hasher;

use crate::error::{Error, Kind, Reason, Result};
use crate::metadata::base64;

/// The name of a key: the fingerprint of the primary key of a version 4 certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 20]);

impl FromStr for Fingerprint {
    type Err = Error;

    /// Reads 40 hexadecimal digits, in upper case as gpg writes them.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                Kind::Usage,
                format!("'{}' is no fingerprint of a key; it has 40 digits of 0-9 and A-F", text.escape_debug()),
            )
        };
        let is_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if text.len() != 40 || !text.bytes().all(is_hex) {
            return Err(wrong());
        }
        let mut bytes = [0; 20];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A public key with what belongs to it, as OpenPGP packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The name of its primary key.
    pub fingerprint: Fingerprint,
    /// The packets.
    pub bytes: Vec<u8>,
}

/// Longest certificate, in bytes.
pub const MAX_CERTIFICATE: usize = 64 << 10;
/// Longest signature, in bytes before the armor; those of 4096-bit RSA keys have some 600.
const MAX_SIGNATURE: usize = 8 << 10;

const SIGNATURE: u8 = 2;
const SECRET_KEY: u8 = 5;
const PUBLIC_KEY: u8 = 6;
const USER_ID: u8 = 13;
const SUBKEY: u8 = 14;
const ATTRIBUTE: u8 = 17;

impl Certificate {
    /// Reads exactly one certificate.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        match <[Self; 1]>::try_from(Self::decode_all(bytes)?) {
            Ok([one]) => Ok(one),
            Err(all) => Err(not_a_key(format!("there are {} keys in one", all.len()))),
        }
    }

    /// Reads the certificates that `gpg --export` wrote, armored or not; anything but public keys is refused.
    pub fn decode_all(text: &[u8]) -> Result<Vec<Self>> {
        if text.len() > 64 * 2 * MAX_CERTIFICATE {
            return Err(not_a_key("it is too long".to_owned()));
        }
        let bytes = match text.trim_ascii_start().starts_with(b"-----BEGIN PGP") {
            true => dearmor_keys(text).ok_or_else(|| not_a_key("its armor is damaged, or it is not a public key".to_owned()))?,
            false => text.to_vec(),
        };
        let mut all: Vec<Self> = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (tag, body, len) = packet(rest).ok_or_else(|| not_a_key("it is cut short, or no OpenPGP".to_owned()))?;
            match (tag, all.last_mut()) {
                (PUBLIC_KEY, _) => all.push(Self { fingerprint: fingerprint(body)?, bytes: rest[..len].to_vec() }),
                (SIGNATURE | USER_ID | SUBKEY | ATTRIBUTE, Some(last)) => last.bytes.extend_from_slice(&rest[..len]),
                (SECRET_KEY, _) => return Err(not_a_key("it is a secret key, which must not leave its owner".to_owned())),
                _ => return Err(not_a_key(format!("it has a packet of kind {tag}"))),
            }
            rest = &rest[len..];
        }
        match all.iter().find(|one| one.bytes.len() > MAX_CERTIFICATE) {
            Some(long) => Err(not_a_key(format!(
                "key {} is too long; 'gpg --export-options export-minimal' makes it shorter",
                long.fingerprint
            ))),
            None if all.is_empty() => Err(not_a_key("there is no key".to_owned())),
            None => Ok(all),
        }
    }
}

fn not_a_key(why: String) -> Error {
    Error::new(Kind::Usage, format!("not a public key: {why}; 'gpg --armor --export KEY' writes one"))
}

fn fingerprint(body: &[u8]) -> Result<Fingerprint> {
    match (body.first(), u16::try_from(body.len())) {
        (Some(4), Ok(len)) => {
            let mut hasher = Hasher::new();
            hasher.update(&[&[0x99][..], &len.to_be_bytes(), body].concat());
            let digest = hasher.finalize().map_err(|_| not_a_key("it was made to collide in SHA-1".to_owned()))?;
            Ok(Fingerprint(digest.to_bytes()))
        }
        (version, _) => {
            let version = version.copied().unwrap_or_default();
            Err(Error::new(
                Kind::Unsupported,
                format!("the key is of version {version} of OpenPGP; only those of version 4 are known"),
            ))
        }
    }
}

/// Returns tag, body and whole length of the packet that `bytes` begin with; lengths in parts are refused, nobody needs them here.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let at = |i: usize| bytes.get(i).map(|&b| usize::from(b));
    let head = at(0)?;
    let (tag, start, len) = match head {
        0xc0.. => match at(1)? {
            short @ ..192 => (head & 63, 2, short),
            long @ 192..224 => (head & 63, 3, ((long - 192) << 8) + at(2)? + 192),
            255 => (head & 63, 6, at(2)? << 24 | at(3)? << 16 | at(4)? << 8 | at(5)?),
            _ => return None,
        },
        0x80.. => match head & 3 {
            0 => (head >> 2 & 15, 2, at(1)?),
            1 => (head >> 2 & 15, 3, at(1)? << 8 | at(2)?),
            2 => (head >> 2 & 15, 5, at(1)? << 24 | at(2)? << 16 | at(3)? << 8 | at(4)?),
            _ => return None,
        },
        _ => return None,
    };
    let end = start + len;
    Some((tag as u8, bytes.get(start..end)?, end))
}

/// The line that a signature begins with.
pub const BEGIN: &str = "-----BEGIN PGP SIGNATURE-----\n";
const END: &str = "-----END PGP SIGNATURE-----\n";
const LINE: usize = 64;

/// Returns the armor of the signature `packet`, as gpg writes it.
pub fn armor(packet: &[u8]) -> String {
    let text = |bytes: &[u8]| {
        let mut out = Vec::new();
        base64::encode(bytes, &mut out);
        String::from_utf8(out).expect("BUG: base64 is ASCII")
    };
    let body = text(packet);
    let mut armored = format!("{BEGIN}\n");
    for at in (0..body.len()).step_by(LINE) {
        armored += &body[at..body.len().min(at + LINE)];
        armored.push('\n');
    }
    let [_, crc @ ..] = crc24(packet).to_be_bytes();
    format!("{armored}={}\n{END}", text(&crc))
}

/// Returns the packets of `text`, which must be armored signatures as [`armor`] writes them, one packet each, at most `most`, and nothing else.
pub fn dearmor(text: &str, most: usize) -> Result<Vec<Vec<u8>>> {
    let mut signatures = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if signatures.len() == most {
            return Err(bad_signature(match most {
                1 => "there is more than one, or something after it".to_owned(),
                _ => format!("there are more than {most}"),
            }));
        }
        let Some(end) = rest.find(END).map(|at| at + END.len()).filter(|_| rest.starts_with(BEGIN)) else {
            return Err(bad_signature("there is something beside it, or it is cut short".to_owned()));
        };
        let (block, after) = rest.split_at(end);
        signatures.push(dearmor_one(block)?);
        rest = after;
    }
    Ok(signatures)
}

fn dearmor_one(block: &str) -> Result<Vec<u8>> {
    let packet_of = || {
        let body = block.strip_prefix(BEGIN)?.strip_prefix('\n')?.strip_suffix(END)?;
        let (body, _crc) = body.rsplit_once("\n=")?;
        let body: Vec<u8> = body.bytes().filter(|&b| b != b'\n').collect();
        base64::decode(&body).filter(|bytes| bytes.len() <= MAX_SIGNATURE && armor(bytes) == block)
    };
    let bytes = packet_of().ok_or_else(|| bad_signature("its armor is not as gpg writes it".to_owned()))?;
    check_signature(&bytes)?;
    Ok(bytes)
}

/// Fails unless `bytes` are one signature and nothing else.
pub fn check_signature(bytes: &[u8]) -> Result<()> {
    match packet(bytes) {
        Some((SIGNATURE, _, len)) if len == bytes.len() => Ok(()),
        _ => Err(bad_signature("it is not one OpenPGP signature".to_owned())),
    }
}

/// Returns the error for a signature that does not count.
pub fn bad_signature(why: String) -> Error {
    Error::refused(Reason::Signature, format!("the signature does not count: {why}"))
}

fn crc24(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 0x80_0000 == 0 { crc << 1 } else { crc << 1 ^ 0x186_4cfb };
    let take = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte) << 16, |crc, _| step(crc) & 0xff_ffff);
    bytes.iter().fold(0xb7_04ce, take)
}

/// Reads blocks of armored public keys: people paste them, so headers, checksums and what is around them are passed over.
fn dearmor_keys(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut lines = std::str::from_utf8(text).ok()?.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        if line != "-----BEGIN PGP PUBLIC KEY BLOCK-----" {
            match line.starts_with("-----BEGIN") {
                true => return None,
                false => continue,
            }
        }
        let mut body = Vec::new();
        let headers = lines.by_ref().take_while(|line| !line.is_empty());
        headers.for_each(drop);
        for line in lines.by_ref().take_while(|line| !line.starts_with("-----END") && !line.starts_with('=')) {
            body.extend_from_slice(line.as_bytes());
        }
        bytes.extend(base64::decode(&body)?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that gpg made.
    const ARMORED: &str = "-----BEGIN PGP SIGNATURE-----\n\niHUEABYIAB0WIQTHW69J5LId/BM7trtwQ+h4Vu7V+QUCawOPSgAKCRBwQ+h4Vu7V\n+XSYAP9/pbvCiJMAIrTJo0RKQ+yw1JN6c1RmY4kgGP531Chz2wD/Q8xwzRZ4hELM\nVqMear0Ur1VToqaz5kLeY+BjYJJ2ZwE=\n=afH1\n-----END PGP SIGNATURE-----\n";

    #[test]
    fn the_armor_of_gpg_is_read_and_written_byte_for_byte() {
        let [packet] = <[Vec<u8>; 1]>::try_from(dearmor(ARMORED, 1).unwrap()).unwrap();
        assert_eq!((packet[0], packet.len()), (0x88, 119));
        assert_eq!(armor(&packet), ARMORED);
        assert_eq!(dearmor(&ARMORED.repeat(3), 3).unwrap().len(), 3);
        assert_eq!(dearmor("", 1).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_signature_that_is_not_exactly_one_does_not_count() {
        let packet = dearmor(ARMORED, 1).unwrap().remove(0);
        let mut cases = vec![
            ARMORED.repeat(2),
            ARMORED.repeat(40),
            format!("{ARMORED}\n"),
            format!("x{ARMORED}"),
            ARMORED.replace("\n\n", "\nComment: x\n\n"),
            ARMORED.replace("=afH1", "=afH2"),
            ARMORED.replace("=afH1\n", ""),
            ARMORED.replace('\n', "\r\n"),
            ARMORED.replace("iHUE", "iHUE\n"),
            ARMORED.replace("SIGNATURE", "MESSAGE"),
            armor(&[&packet[..], &packet[..]].concat()),
            armor(&packet[..packet.len() - 1]),
            armor(b""),
            armor(&[0xb4, 1, b'x']),
            armor(&vec![0; MAX_SIGNATURE + 1]),
        ];
        cases.extend((1..ARMORED.len()).map(|cut| ARMORED[..cut].to_owned()));
        for text in cases {
            let error = dearmor(&text, 1).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Refused, Some(Reason::Signature)), "{text}");
        }
    }

    #[test]
    fn lengths_of_packets_are_bounded_by_what_is_there() {
        for bytes in [
            &[0xc6][..],
            &[0xc6, 5, 1],
            &[0xc6, 255, 255, 255, 255, 255, 0],
            &[0xc6, 224, 0],
            &[0x9b, 0],
            &[0x9a, 255, 255, 255, 255],
            &[0x40, 0],
        ] {
            assert_eq!(packet(bytes), None, "{bytes:?}");
            assert_eq!(Certificate::decode_all(bytes).unwrap_err().kind(), Kind::Usage);
        }
        assert_eq!(packet(&[0xc2, 1, 7, 9]), Some((2, &[7][..], 3)));
        assert_eq!(Certificate::decode_all(&[0xc6, 1, 5]).unwrap_err().kind(), Kind::Unsupported);
        let secret = Certificate::decode_all(&[0x94, 1, 4]).unwrap_err();
        assert!(secret.to_string().contains("secret key"), "{secret}");
    }
}
