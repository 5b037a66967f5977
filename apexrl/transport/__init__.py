"""How services talk: messages, channels, and the clients and servers on top of them. The only users of grpc."""

from apexrl.transport._generated.apex.v1 import coordinator_pb2, parameters_pb2, replay_pb2

__all__ = ["coordinator_pb2", "parameters_pb2", "replay_pb2"]
