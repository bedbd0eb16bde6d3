"""`python parse.py --serve BUNDLE`: the page and a bundle, to this machine only."""

import http.server
import re
import shutil
import subprocess
from pathlib import Path

WEB = Path(__file__).resolve().parent
PAGE = ("index.html", "container.js", "page.js", "parser.js", "remote.js", "runtime.js", "worker.js")
LIBRARY = tuple(line.split()[1] for line in (WEB / "vendor.sha256").read_text().splitlines())  # onnxruntime-web's
PLACES = (WEB / "vendor", WEB / "node_modules/onnxruntime-web/dist")  # where vendor.sh and npm put it
OF_BUNDLE = re.compile(r"bundle/(bundle\.json|sample\.npz|onnx/[a-z0-9_]+\.onnx)")
HEADERS = {  # the page reaches nothing but this server, and may use threads
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob: data:",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """GET and HEAD of the files that are named above; what is asked for chooses among them, and becomes no path."""

    extensions_map = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript",
                      ".wasm": "application/wasm", ".json": "application/json", "": "application/octet-stream"}

    def send_head(self):
        port = self.server.server_address[1]
        if self.headers["Host"] not in (f"localhost:{port}", f"127.0.0.1:{port}"):  # another's name that leads here
            return self.send_error(403)
        return super().send_head() if self.file() else self.send_error(404)

    def translate_path(self, path: str) -> str:
        return str(self.file())

    def file(self) -> Path | None:
        name = self.path.split("?")[0].removeprefix("/") or "index.html"
        folder, _, rest = name.partition("/")
        paths = [WEB / name] if name in PAGE else []
        if folder == "vendor" and rest in LIBRARY:
            paths = [place / rest for place in PLACES]
        elif OF_BUNDLE.fullmatch(name):
            paths = [self.bundle / rest]
        return next((path for path in paths if path.is_file() and path.resolve() == path), None)  # and no link

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def serve(bundle: Path, port: int) -> None:
    """Until Ctrl-C. Port 0: any that is free. Raises OSError."""
    there = any(all((place / name).is_file() for name in LIBRARY) for place in PLACES)
    if not there and (not shutil.which("npm") or subprocess.run(["bash", WEB / "vendor.sh"]).returncode):
        raise OSError(f"the page needs onnxruntime-web: npm would fetch it, or bring {PLACES[0]} from another machine")
    Handler.bundle = bundle.resolve()
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
        raise OSError(f"port {port}: {reason}; --port N takes another") from None
    server.handle_error = lambda *arguments: None  # a browser that stopped loading is no news
    print(f"http://localhost:{server.server_address[1]}/?bundle=bundle   (Ctrl-C ends it)", flush=True)
    server.serve_forever()
