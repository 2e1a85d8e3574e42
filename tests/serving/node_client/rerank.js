// Reads requests from standard input, one JSON object a line; writes responses, or {code, details}, one a line.
// Usage: node rerank.js ADDRESS PROTO_ROOT < requests
'use strict';

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const readline = require('readline');

async function main([address, protoRoot]) {
  const definition = protoLoader.loadSync('gr2/v1/reranker.proto', {
    includeDirs: [protoRoot],
    keepCase: true,
    longs: String, // item IDs above 2^53 are exact only as strings
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const { Reranker } = grpc.loadPackageDefinition(definition).gr2.v1;
  const client = new Reranker(address, grpc.credentials.createInsecure());
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const reply = await new Promise((resolve) => {
      client.Rerank(JSON.parse(line), { deadline: Date.now() + 10000 }, (error, response) =>
        resolve(error ? { code: grpc.status[error.code], details: error.details } : response));
    });
    console.log(JSON.stringify(reply));
  }
  client.close();
}

main(process.argv.slice(2));
