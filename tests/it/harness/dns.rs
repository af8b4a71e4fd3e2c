use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// A scripted name server, made from RFC 1035: it answers for the names that it is told, as well or as badly as it is told to. By UDP and TCP, as a
/// task of the test.
pub(crate) struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    questions: Arc<AtomicUsize>,
    by_tcp: Arc<AtomicUsize>,
    tasks: [JoinHandle<()>; 2],
}

/// How a name server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    /// It says nothing.
    Silent,
    /// It answers with this code and nothing else.
    Code(u8),
    /// It says of every name that it has no such records.
    Empty,
    /// By UDP it says that the answer is too long.
    Truncates,
    /// It answers with another identifier than that of the question.
    WrongId,
    /// It answers with what is no message.
    Garbage,
    /// It says nothing to questions for addresses of IPv6.
    NoSix,
}

/// SERVFAIL, NXDOMAIN and REFUSED.
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;
pub(crate) const REFUSED: u8 = 5;

/// What is said of a name.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Address(IpAddr),
    Alias(&'static str),
    Service { priority: u16, weight: u16, port: u16, target: String },
}

struct Zone {
    mood: Mood,
    ttl: u32,
    names: HashMap<String, Vec<Record>>,
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Alias(_) => CNAME,
            Self::Service { .. } => SRV,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Self::Address(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Self::Alias(name) => labels(name),
            Self::Service { priority, weight, port, target } => {
                [&[*priority, *weight, *port].map(u16::to_be_bytes).concat()[..], &labels(target)].concat()
            }
        }
    }
}

fn labels(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

impl Dns {
    /// One that knows nothing. Inside a runtime only.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone { mood: Mood::Good, ttl: 1, names: HashMap::new() }));
        let (questions, by_tcp) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (of_udp, asked) = (Arc::clone(&zone), Arc::clone(&questions));
        let answers = tokio::spawn(async move {
            let mut query = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut query).await {
                asked.fetch_add(1, SeqCst);
                let answer = of_udp.lock().unwrap().answer(&query[..length], true);
                if let Some(answer) = answer {
                    let _ = udp.send_to(&answer, peer).await;
                }
            }
        });
        let (of_tcp, asked) = (Arc::clone(&zone), Arc::clone(&by_tcp));
        let accepts = tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                asked.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&of_tcp)));
            }
        });
        Self { address, zone, questions, by_tcp, tasks: [answers, accepts] }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A table by which isobar asks it, with these keys.
    pub(crate) fn table(&self, keys: &str) -> String {
        format!("[dns]\nnameservers = [\"{}\"]\nsearch = [\"search.test\"]\n{keys}\n", self.address)
    }

    /// From now on the name has these addresses.
    pub(crate) fn set(&self, name: &str, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) {
        self.say(name, addresses.into_iter().map(|it| Record::Address(it.into())));
    }

    /// From now on this is said of the name.
    pub(crate) fn say(&self, name: &str, records: impl IntoIterator<Item = Record>) {
        self.zone.lock().unwrap().names.insert(name.into(), records.into_iter().collect());
    }

    /// From now on there is no such name.
    pub(crate) fn forget(&self, name: &str) {
        self.zone.lock().unwrap().names.remove(name);
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.zone.lock().unwrap().mood = mood;
    }

    pub(crate) fn ttl(&self, seconds: u32) {
        self.zone.lock().unwrap().ttl = seconds;
    }

    /// Questions that came by UDP, and connections that came by TCP.
    pub(crate) fn asked(&self) -> (usize, usize) {
        (self.questions.load(SeqCst), self.by_tcp.load(SeqCst))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(mut stream: TcpStream, zone: Arc<Mutex<Zone>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; length.into()];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let answer = zone.lock().unwrap().answer(&query, false);
        let Some(answer) = answer else { continue };
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

impl Zone {
    /// The answer to a message; `None` is silence.
    fn answer(&self, query: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        let (mut at, mut words) = (12, Vec::new());
        while query[at] > 0 {
            let label = &query[at + 1..at + 1 + usize::from(query[at])];
            words.push(String::from_utf8_lossy(label).to_lowercase());
            at += 1 + label.len();
        }
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let question = &query[12..at + 5];
        let mut name = words.join(".");
        let mut records = Vec::new();
        let mut known = self.names.contains_key(&name);
        // As a resolver answers: with all of the chain.
        while let Some(Record::Alias(target)) = self.names.get(&name).and_then(|it| it.first()) {
            records.push((name.clone(), Record::Alias(target)));
            name = (*target).to_owned();
            known = self.names.contains_key(&name);
        }
        let of_kind = self.names.get(&name).into_iter().flatten().filter(|it| it.kind() == kind);
        records.extend(of_kind.map(|it| (name.clone(), it.clone())));
        let mut id = [query[0], query[1]];
        let mut code = if known { 0 } else { NXDOMAIN };
        let mut truncated = false;
        match self.mood {
            Mood::Good => {}
            Mood::Silent => return None,
            Mood::NoSix if kind == AAAA => return None,
            Mood::NoSix => {}
            Mood::Code(other) => (code, records) = (other, Vec::new()),
            Mood::Empty => (code, records) = (0, Vec::new()),
            Mood::Truncates => truncated = by_udp,
            Mood::WrongId => id[0] ^= 0x55,
            Mood::Garbage => return Some([&id[..], b"\x81\x80no message of any kind"].concat()),
        }
        let message = |records: &[(String, Record)], truncated: bool| {
            let flags = [0x81 | if truncated { 2 } else { 0 }, 0x80 | code];
            let counts = [1, records.len() as u16, 0, 0].map(u16::to_be_bytes).concat();
            let mut message = [&id[..], &flags, &counts, question].concat();
            for (owner, record) in records {
                let data = record.data();
                message.extend(labels(owner));
                message.extend([record.kind(), 1].map(u16::to_be_bytes).concat());
                message.extend(self.ttl.to_be_bytes());
                message.extend((data.len() as u16).to_be_bytes());
                message.extend(data);
            }
            message
        };
        let whole = message(&records, false);
        // What the question says that it takes by EDNS is more than this.
        match truncated || (by_udp && whole.len() > 1232) {
            true => Some(message(&[], true)),
            false => Some(whole),
        }
    }
}
