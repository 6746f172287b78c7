//! The decoders of what comes from another node, from a guest, or from a user.

use crate::{images, moves};
use tcmi_call::engine::{Call, SliceMemory};
use tcmi_call::frame::ReplyHeader;
use tcmi_call::record::{self, Aead, Opener};
use tcmi_core::command::{Command, Form};
use tcmi_kkc::{Address, Control, GuestControl, PeerKey, decode_control};

pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Ok: a word for what the decoder said. Err: what it did wrong.
    pub run: fn(&[u8]) -> Result<String, String>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "control_message", seeds: control_messages, run: control_message },
    Target { name: "control_write", seeds: control_writes, run: control_write },
    Target { name: "record", seeds: records, run: record },
    Target { name: "address_and_key", seeds: addresses, run: address_and_key },
    Target { name: "call_of_a_guest", seeds: calls, run: call_of_a_guest },
    Target { name: "reply_of_a_home", seeds: calls, run: reply_of_a_home },
    Target { name: "move_message", seeds: moves::messages, run: moves::message },
    Target { name: "pages", seeds: moves::page_runs, run: moves::pages },
    Target { name: "file_of_a_home", seeds: moves::files, run: moves::file },
    Target { name: "front_of_an_image", seeds: images::fronts, run: images::front },
    Target { name: "section_of_an_image", seeds: images::sections, run: images::section },
];

fn control_messages() -> Vec<Vec<u8>> {
    let messages = [
        Control::Hello { protocol: 1, name: "desk".into(), features: vec!["arch=x86_64".into()] },
        Control::Ping {},
        Control::Pong { load: 1500 },
        Control::Bye { reason: "the owner is back".into() },
        Control::Offer {
            migration: 7,
            epoch: 1,
            pid: 4242,
            uid: 1000,
            comm: "python3".into(),
            bulk: 9,
            memory: 1 << 20,
            threads: 3,
        },
        Control::OfferAnswer { migration: 7, errno: 95, text: "no avx512".into() },
        Control::Guest { migration: 7, what: GuestControl::WantHome },
        Control::MigrationStatus { migration: 7, epoch: 1 },
    ];
    messages.iter().filter_map(|m| m.encode().ok()).collect()
}

fn control_message(input: &[u8]) -> Result<String, String> {
    let message = match decode_control(input) {
        Ok(message) => message,
        Err(e) => return Ok(format!("{e:?}")),
    };
    let again = message.encode().map_err(|e| format!("what it decoded does not encode: {e}"))?;
    if again != input {
        return Err(format!("two encodings of {message:?}"));
    }
    Ok(message.label().to_owned())
}

const FORMS: [Form; 9] = [
    Form::Address,
    Form::KeyLines,
    Form::AddressKey,
    Form::PidNode,
    Form::Pid,
    Form::PidPath,
    Form::PidNodeTree,
    Form::PidMaybeNode,
    Form::One,
];

fn control_writes() -> Vec<Vec<u8>> {
    let texts = [
        "tcp:127.0.0.1:7770",
        "-0123",
        "tcp:[::1]:7770 key",
        "4242 desk",
        "4242",
        "4242 /tmp/image",
        "4242 18446744073709551615",
        "1",
    ];
    texts.iter().zip(0u8..).map(|(text, form)| [&[form], text.as_bytes(), b"\n"].concat()).collect()
}

/// The first byte chooses the file.
fn control_write(input: &[u8]) -> Result<String, String> {
    let Some((form, value)) = input.split_first() else { return Ok("empty".into()) };
    let form = FORMS[usize::from(*form) % FORMS.len()];
    Ok(match Command::parse(form, value) {
        Ok(_) => format!("{form:?} taken"),
        Err(e) => format!("{form:?} {e:?}"),
    })
}

/// Lets everything through, so that what is behind the authentication is reached.
struct Trusting;

impl Aead for Trusting {
    fn seal(&mut self, _: &[u8; 12], _: &[u8; 5], _: &mut [u8]) -> [u8; 16] {
        [0; 16]
    }
    fn open(&mut self, _: &[u8; 12], _: &[u8; 5], _: &mut [u8], _: &[u8; 16]) -> bool {
        true
    }
}

fn records() -> Vec<Vec<u8>> {
    let record = |plain: &[u8]| {
        let length = (plain.len() + 17) as u16;
        [&[23, 3, 3][..], &length.to_be_bytes(), plain, &[23], &[0; 16]].concat()
    };
    vec![record(b"hello"), record(&[0; 300]), record(b"")]
}

fn record(input: &[u8]) -> Result<String, String> {
    let Some((head, body)) = input.split_first_chunk() else { return Ok("short".into()) };
    let length = match record::body_len(head) {
        Ok(length) => length,
        Err(e) => return Ok(format!("head {e:?}")),
    };
    let Some(body) = body.get(..length) else { return Ok("short body".into()) };
    let mut body = body.to_vec();
    match Opener::new(Trusting, [0; 12], 0).open(head, &mut body) {
        Ok(plain) if plain < length => Ok("opened".into()),
        Ok(plain) => Err(format!("{plain} bytes of plaintext in a body of {length}")),
        Err(e) => Ok(format!("body {e:?}")),
    }
}

fn addresses() -> Vec<Vec<u8>> {
    [
        "tcp:127.0.0.1:7770",
        "tcp:[::1]:7770",
        "tcp:home.example:1",
        &PeerKey::from_bytes([7; 32]).to_string(),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn address_and_key(input: &[u8]) -> Result<String, String> {
    let Ok(text) = std::str::from_utf8(input) else { return Ok("not text".into()) };
    let address = text.parse::<Address>();
    if let Ok(address) = &address
        && address.to_string().parse::<Address>().as_ref() != Ok(address)
    {
        return Err(format!("{address} reads otherwise than {text:?}"));
    }
    let key = text.parse::<PeerKey>();
    if let Ok(key) = &key
        && key.to_string().parse::<PeerKey>().as_ref() != Ok(key)
    {
        return Err(format!("{key} reads otherwise than {text:?}"));
    }
    Ok(format!("{} {}", address.is_ok(), key.is_ok()))
}

const MEMORY_BASE: u64 = 0x1000;
/// Number, six arguments; then, for a reply, 32 bytes of header and its payload.
const REQUEST_BYTES: usize = 7 * 8;
const MEMORY_BYTES: usize = 16 * 1024;

fn calls() -> Vec<Vec<u8>> {
    let request = |nr: u64, args: [u64; 6]| -> Vec<u8> {
        std::iter::once(nr).chain(args).flat_map(u64::to_le_bytes).chain([0; 256]).collect()
    };
    let at = MEMORY_BASE;
    tcmi_call::table::rows()
        .flat_map(|(nr, _)| {
            let nr = u64::from(nr);
            [
                request(nr, [1, at, 64, at + 512, 16, at + 1024]),
                request(nr, [at, at + 256, at + 512, 3, 8, 0]),
            ]
        })
        .collect()
}

struct Request<'a> {
    nr: u32,
    args: [u64; 6],
    rest: &'a [u8],
}

fn request(input: &[u8]) -> Option<Request<'_>> {
    let (head, rest) = input.split_at_checked(REQUEST_BYTES)?;
    let word = |i: usize| head[i * 8..].first_chunk().map(|b| u64::from_le_bytes(*b));
    let mut args = [0; 6];
    for (i, arg) in args.iter_mut().enumerate() {
        *arg = word(i + 1)?;
    }
    // Most inputs shall have a number that is in the table.
    Some(Request { nr: (word(0)? & 0x1ff) as u32, args, rest })
}

fn memory_of(rest: &[u8]) -> Vec<u8> {
    let mut memory = rest[..rest.len().min(MEMORY_BYTES)].to_vec();
    memory.resize(MEMORY_BYTES, 0);
    memory
}

/// A guest may pass any argument and have anything in its memory.
fn call_of_a_guest(input: &[u8]) -> Result<String, String> {
    let Some(Request { nr, args, rest }) = request(input) else { return Ok("short".into()) };
    let mut bytes = memory_of(rest);
    let mut memory = SliceMemory { base: MEMORY_BASE, bytes: &mut bytes };
    let mut call = Call::new();
    match call.marshal(nr, &args, 1, 0, &mut memory) {
        Err(errno) => Ok(format!("{} {errno:?}", letters(nr))),
        Ok(()) => {
            let header = call.header();
            if header.in_len > header.buf_len {
                return Err(format!(
                    "{} bytes go into a buffer of {}",
                    header.in_len, header.buf_len
                ));
            }
            Ok(format!("{} {} pointers", letters(nr), letters(header.ptr_args.into())))
        }
    }
}

/// A home that lies must not write where the call's ranges are not.
fn reply_of_a_home(input: &[u8]) -> Result<String, String> {
    let Some(Request { nr, args, rest }) = request(input) else { return Ok("short".into()) };
    let Some(mut reply) = ReplyHeader::from_bytes(rest) else { return Ok("short reply".into()) };
    let mut bytes = memory_of(&[]);
    let mut memory = SliceMemory { base: MEMORY_BASE, bytes: &mut bytes };
    let mut call = Call::new();
    if let Err(errno) = call.marshal(nr, &args, 1, 0, &mut memory) {
        return Ok(format!("{} {errno:?}", letters(nr)));
    }
    // Without these three nothing behind the first check is reached.
    if rest[0] & 7 != 0 {
        reply.kind = tcmi_call::frame::kind::REPLY;
        reply.seq = 1;
        reply.outs = call.header().outs;
    }
    let outcome = call.unmarshal(&reply, &rest[ReplyHeader::BYTES..], &mut memory);
    Ok(format!("{} {}", letters(nr), outcome.map_or("bad", |_| "taken")))
}

/// Digits do not count in an outcome; a call's number does.
fn letters(number: u32) -> String {
    number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect()
}
