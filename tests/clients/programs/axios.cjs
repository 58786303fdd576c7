// `node axios.cjs MODULES URL`: the body goes to standard output.
const axios = require(require.resolve('axios', { paths: [process.argv[2]] }))
axios.get(process.argv[3], { responseType: 'text', transformResponse: (text) => text }).then(
  (response) => process.stdout.write(response.data),
  (error) => {
    console.error(error.message)
    process.exit(1)
  },
)
