use super::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const TEXT: &str = r#"
    workers = 1
    [admin]
    address = "127.0.0.1:0"
    [[listener]]
    address = "127.0.0.1:0"
    [[route]]
    upstream = "u"
    [upstream.u]
    backends = ["127.0.0.1:9001"]
"#;

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[test]
fn the_admin_address_sees_and_steers_it() {
    let running = Isobar::builder().config_text(TEXT).start().unwrap();
    let ask = |line: &str| {
        let mut stream = TcpStream::connect(running.admin_address().unwrap()).unwrap();
        write!(stream, "{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET /readyz").starts_with("HTTP/1.1 200"));
    let reloaded = ask("POST /reload");
    assert!(reloaded.starts_with("HTTP/1.1 200") && reloaded.contains(r#""fate": "kept""#), "{reloaded}");
    assert_eq!(running.handle().snapshot().generation, 2);
}

#[test]
fn wait_returns_when_a_handle_stops_it() {
    let running = Isobar::builder().config_text(TEXT).start().unwrap();
    let admin = running.admin_address().unwrap();
    let handle = running.handle().clone();
    let stopper = thread::spawn(move || handle.stop(None));
    assert_eq!(running.wait(), Ended::Stopped { cut: 0 });
    stopper.join().unwrap();
    assert!(is_free(admin), "the admin address is given back");
}

/// The same with a file and checks, and the tasks of its own.
fn whole(name: &str) -> (PathBuf, Running) {
    let file = std::env::temp_dir().join(format!("isobar-{}-{name}.toml", std::process::id()));
    std::fs::write(&file, format!("{TEXT}health_check = {{ path = \"/\" }}\n")).unwrap();
    let running = Isobar::builder().config_file(&file).start().unwrap();
    let vital = running.handle().events().vital();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while vital.watched().len() < 13 {
        assert!(std::time::Instant::now() < deadline, "{:?}", vital.watched());
        thread::sleep(Duration::from_millis(5));
    }
    (file, running)
}

#[test]
fn whatever_of_its_own_panics_it_is_not_half_dead() {
    let (file, running) = whole("tasks");
    let mut tasks = running.handle().events().vital().watched();
    drop((running, std::fs::remove_file(file)));
    for task in &mut tasks {
        // Its port is another one each time.
        *task = task.split(" at ").next().unwrap().to_owned();
    }
    assert_eq!(
        tasks,
        [
            "accepting",
            "admin address",
            "certificates",
            "control",
            "drain limit of worker 0",
            "gauge",
            "health checks of 127.0.0.1:9001 in upstream u",
            "inbox of worker 0",
            "keeper of upstream u",
            "lookout of upstream u",
            "pulse",
            "sweep of worker 0",
            "watch over the file"
        ]
    );
    for task in tasks {
        let (file, running) = whole("panic");
        let handle = running.handle().clone();
        let addresses = [running.admin_address().unwrap(), running.listener_addresses()[0]];
        let vital = handle.events().vital();
        let whole = vital.watched().into_iter().find(|it| it.starts_with(&task)).unwrap();
        vital.inject(&whole);
        match std::panic::catch_unwind(AssertUnwindSafe(|| running.wait())) {
            Ok(ended) => assert_eq!(ended, Ended::Failed { cut: 0 }, "{task}"),
            // There is no one left to stop it in order: the program is told by the panic itself.
            Err(_) => assert_eq!(task, "control"),
        }
        assert_eq!(vital.failure(), Some(&*whole));
        for address in addresses {
            let free = (0..250).any(|_| {
                thread::sleep(Duration::from_millis(20));
                is_free(address)
            });
            assert!(free, "{task}: nothing is left that accepts");
        }
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn dropped_it_stops() {
    let running = Isobar::builder().config_text(TEXT).admin(false).start().unwrap();
    assert_eq!(running.admin_address(), None);
    let address = running.listener_addresses()[0];
    assert!(!is_free(address));
    drop(running);
    assert!((0..250).any(|_| {
        thread::sleep(Duration::from_millis(20));
        is_free(address)
    }));
}

#[test]
fn a_refused_configuration_is_told_at_the_start() {
    let refused = Isobar::builder().config_text("nope = 1").start();
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
}
