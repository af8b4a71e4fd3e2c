//! Requests through an isobar in this process, over loopback and back: `cargo bench --bench proxy`, about 40 s.
//!
//! One worker; connections are kept on both sides. With one client the time is that of a request and a response, wake-ups of
//! three threads included. With many, all of them ask before any answer is read, so that the worker always has something to
//! do: the time, by request, comes near to what a request costs it. `benches/compare` compares it with other proxies.

use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isobar::Isobar;

const SMALL: usize = 128;

const LARGE: usize = 1_000_000;

const CLIENTS: usize = 16;

/// Sizes of the bodies of a request and of its response.
const EXCHANGES: [(&str, usize, usize); 5] = [
    ("small", 0, SMALL),
    ("10 kB down", 0, 10_000),
    ("10 kB up", 10_000, SMALL),
    ("1 MB down", 0, LARGE),
    ("1 MB up", LARGE, SMALL),
];

fn proxy(criterion: &mut Criterion) {
    let backends = [backend(), backend()].map(|address| address.unwrap_or_else(|error| panic!("{error}")));
    let [a, b] = backends;
    let text = format!(
        "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nbackends = [\"{a}\", \"{b}\"]"
    );
    let running = Isobar::builder().admin(false).config_text(text).start().unwrap_or_else(|error| panic!("{error}"));
    let address = running.listener_addresses()[0];
    for clients in [1, CLIENTS] {
        let mut group = criterion.benchmark_group(if clients == 1 { "one client" } else { "many clients" });
        for (name, up, down) in EXCHANGES {
            // Responses that nobody reads yet would wait in the backends' way.
            if clients > 1 && up.max(down) == LARGE {
                continue;
            }
            let request = request(up, down);
            let connect = |_| Client::connect(address).unwrap_or_else(|error| panic!("{error}"));
            let mut clients: Vec<_> = (0..clients).map(connect).collect();
            group.throughput(if up.max(down) == LARGE {
                Throughput::Bytes(LARGE as u64)
            } else {
                Throughput::Elements(clients.len() as u64)
            });
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                bencher.iter(|| {
                    exchange(&mut clients, black_box(&request), down).unwrap_or_else(|error| panic!("{name}: {error}"));
                });
            });
        }
        group.finish();
    }
}

fn request(up: usize, down: usize) -> Vec<u8> {
    let mut request = match up {
        0 => format!("GET /{down} HTTP/1.1\r\nhost: bench\r\naccept: */*\r\n\r\n"),
        _ => format!("POST /{down} HTTP/1.1\r\nhost: bench\r\naccept: */*\r\ncontent-length: {up}\r\n\r\n"),
    }
    .into_bytes();
    request.resize(request.len() + up, b'u');
    request
}

fn exchange(clients: &mut [Client], request: &[u8], down: usize) -> io::Result<()> {
    for client in &mut *clients {
        client.stream.get_mut().write_all(request)?;
    }
    clients.iter_mut().try_for_each(|client| client.read_response(down))
}

struct Client {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream: BufReader::with_capacity(256 * 1024, stream), line: String::new() })
    }

    fn read_response(&mut self, down: usize) -> io::Result<()> {
        let (start, length) = read_head(&mut self.stream, &mut self.line)?;
        if !start.starts_with("HTTP/1.1 200 ") || length != down {
            return Err(io::Error::other(format!("{} with {length} bytes", start.trim_end())));
        }
        skip(&mut self.stream, length)
    }
}

/// Answers `/N` with N bytes, a thread for each connection.
fn backend() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // It ends when the proxy closes the connection.
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(256 * 1024, stream);
    let mut line = String::new();
    let mut response = Vec::new();
    let mut ready = usize::MAX;
    loop {
        let (start, length) = read_head(&mut stream, &mut line)?;
        skip(&mut stream, length)?;
        let down = start.split(' ').nth(1).and_then(|path| path.strip_prefix('/')?.parse().ok());
        let down = down.ok_or_else(|| io::Error::other("no size in the path"))?;
        if ready != down {
            response = format!("HTTP/1.1 200 OK\r\ncontent-length: {down}\r\n\r\n").into_bytes();
            response.resize(response.len() + down, b'd');
            ready = down;
        }
        stream.get_mut().write_all(&response)?;
    }
}

/// The first line of a head, and the length of the body behind it.
fn read_head(stream: &mut impl BufRead, line: &mut String) -> io::Result<(String, usize)> {
    let mut start = String::new();
    let mut length = 0;
    stream.read_line(&mut start)?;
    loop {
        line.clear();
        match stream.read_line(line)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            2 => return Ok((start, length)),
            _ => {}
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
}

fn skip(stream: &mut impl BufRead, length: usize) -> io::Result<()> {
    match io::copy(&mut stream.take(length as u64), &mut io::sink())? {
        skipped if skipped == length as u64 => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .without_plots();
    targets = proxy
}
criterion_main!(benches);
