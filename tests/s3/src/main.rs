//! An S3 server for the tests of the history: s3s, which speaks the protocol and checks signatures,
//! over s3s-fs, which keeps objects in files.
//!
//! ```text
//! llorch-s3 ROOT ACCESS_KEY SECRET_KEY [--ignore-conditions]
//! ```
//!
//! A bucket is a folder in ROOT. The first line on stdout is the address. s3s-fs looks whether a condition
//! holds and writes in two steps; S3 does both in one, so here one request is answered at a time. With
//! --ignore-conditions it is one of the stores that know no conditional writes and don't say so.

use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

struct Server {
    root: PathBuf,
    files: FileSystem,
    one_at_a_time: Mutex<()>,
    ignores_conditions: bool,
}

impl Server {
    /// s3s-fs would make it.
    fn must_have(&self, bucket: &str) -> S3Result<()> {
        match self.root.join(bucket).is_dir() {
            true => Ok(()),
            false => Err(s3_error!(NoSuchBucket)),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Server {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let _alone = self.one_at_a_time.lock().await;
        self.must_have(&request.input.bucket)?;
        if self.ignores_conditions {
            request.input.if_match = None;
            request.input.if_none_match = None;
        }
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let _alone = self.one_at_a_time.lock().await;
        self.must_have(&request.input.bucket)?;
        self.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let _alone = self.one_at_a_time.lock().await;
        self.must_have(&request.input.bucket)?;
        self.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let _alone = self.one_at_a_time.lock().await;
        self.must_have(&request.input.bucket)?;
        self.files.list_objects_v2(request).await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, key, secret, options @ ..] = words.as_slice() else {
        eprintln!("usage: llorch-s3 ROOT ACCESS_KEY SECRET_KEY [--ignore-conditions]");
        std::process::exit(2);
    };
    let server = Server {
        root: root.into(),
        files: FileSystem::new(root).expect("a folder"),
        one_at_a_time: Mutex::new(()),
        ignores_conditions: options.iter().any(|word| word == "--ignore-conditions"),
    };
    let mut service = S3ServiceBuilder::new(server);
    service.set_auth(SimpleAuth::from_single(key.as_str(), secret.as_str()));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http://{}", listener.local_addr().expect("an address"));
    let http = Builder::new(TokioExecutor::new());
    while let Ok((socket, _)) = listener.accept().await {
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}
