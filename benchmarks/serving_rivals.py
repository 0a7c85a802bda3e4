"""The same network behind LitServe, and behind a plain FastAPI handler, for `benchmarks/serving.py --also`.

    pip install litserve fastapi uvicorn onnxruntime pillow python-multipart      # in an environment of their own
    python benchmarks/serving_rivals.py litserve RUN/model.int8-cpu.onnx 8101     # then: --also 8101/predict#form
    python benchmarks/serving_rivals.py fastapi RUN/model.int8-cpu.onnx 8102      #       --also 8102/predict

Both decode with Pillow, as their examples do, and run ONNX Runtime. LitServe takes pictures as a form, and gets two
workers of one thread with batches of eight; FastAPI has its pool of threads in front of one session with its own
default of threads. LitServe asks its queues every millisecond: let it run only while it is measured.
"""

import io
import sys

import litserve
import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI, Request
from PIL import Image


def pixels(data: bytes, network: onnxruntime.InferenceSession) -> np.ndarray:
    """(h, w, 3) uint8 RGB, which an edgecls graph takes."""
    height, width = network.get_inputs()[0].shape[1:3]
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def session(model: str, n_threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_fastapi(model: str, port: int) -> None:
    app, network = FastAPI(), session(model)

    @app.post("/predict")
    def predict(data: bytes = Body(media_type="image/jpeg")) -> dict[str, float]:
        logits = network.run(None, {"images": pixels(data, network)[None]})[0]
        return {"label": int(logits.argmax()), "logit": float(logits.max())}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class Api(litserve.LitAPI):
    """Top-level, since LitServe's processes are spawned."""

    def setup(self, device: str) -> None:
        self.network = session(sys.argv[2], 1)

    def decode_request(self, request: Request) -> np.ndarray:
        return pixels(request["content"].file.read(), self.network)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.network.run(None, {"images": images})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, float]:
        return {"label": int(output.argmax()), "logit": float(output.max())}


def by_litserve(model: str, port: int) -> None:
    api = Api(max_batch_size=8, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=2).run(port=port, generate_client_file=False)


if __name__ == "__main__":
    {"fastapi": by_fastapi, "litserve": by_litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
