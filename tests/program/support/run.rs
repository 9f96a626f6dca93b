use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How a program ended. All of it is for the messages of failed tests.
#[derive(Debug, Clone)]
pub struct Run {
    #[expect(dead_code, reason = "shown by Debug")]
    pub command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Ended with `code` and said each of `words` on standard error.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in {self:#?}");
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// Runs a program to its end; a program that hangs is killed and fails the test.
pub fn run(mut command: Command, deadline: Duration) -> Run {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let pid = rustix::process::Pid::from_child(&child);
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(Box::new(child.stdout.take().unwrap()));
    let stderr = read(Box::new(child.stderr.take().unwrap()));
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let status = child.wait().unwrap();
        ended.send(status).unwrap_or(());
    });
    let Ok(status) = end.recv_timeout(deadline) else {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        panic!("{shown} has not ended in {deadline:?}");
    };
    Run {
        command: shown,
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}
